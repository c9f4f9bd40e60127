// Elements and requests. Data reaches the page as text nodes alone: what a title spells is never markup.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} [properties] attributes; `on` holds listeners by event.
 * @param {...(Node|string|null)} children strings become text.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { on = {}, ...attributes } = properties;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  made.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** Put other children in an element's place. */
export const fill = (parent, ...children) => parent.replaceChildren(...children.filter((child) => child !== null));

/** A number as the tables show it. */
export const rounded = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");

/** Show an error, or none. */
export function showError(error) {
  const place = byId("error");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}

/**
 * Ask the server.
 * @returns {Promise<Object>} its JSON.
 * @throws {Error} with what the server says is wrong.
 */
export async function request(path, body = null, signal = null) {
  const options = body === null
    ? { signal }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
  return answer;
}
