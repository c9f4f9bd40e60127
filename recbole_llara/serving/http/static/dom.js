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

let token = null; // what the service wants to see; kept until the page is left

/** Ask the reader for the token. @returns {Promise<string>} */
function askForToken() {
  const form = byId("token-form");
  form.hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      form.hidden = true;
      resolve(byId("token").value);
    }, { once: true });
  });
}

/**
 * Ask the server; where it wants a token, ask the reader for it first.
 * @returns {Promise<Object>} its JSON.
 * @throws {Error} with what the server says is wrong.
 */
export async function request(path, body = null, signal = null) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const options = body === null
    ? { headers, signal }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    token = await askForToken();
    return request(path, body, signal);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
  return answer;
}
