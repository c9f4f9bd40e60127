// The question: titles are searched, a history is built, the runs answer side by side.

import { byId, element, fill, request, rounded, showError } from "./dom.js";
import { explainer } from "./explain.js";

const PAUSE = 120; // ms without a key before titles are searched
const SCORES = { true: "Score: log-likelihood in nats.", false: "Score: the recommender's own." };
const FUSED = "Score: log-probability in nats, of the weighted sum of recommender and LLM.";
const SHARE = "Share: the softmax of the scores over all candidates.";
const PARTS = {
  item_embedding: { short: "emb", long: "behavioural token" },
  item_id: { short: "id", long: "item-id token" },
  placeholder: { short: "PH", long: "placeholder" },
  description: { short: "DSR", long: "description token" },
  user_token: { short: "user", long: "user token" },
  recommender_score: { short: "score", long: "score token" },
};

/** Wire the view up. @returns {{load: function}} `load` takes over another question's history and candidates. */
export function startAsking(known) {
  const state = { history: [], candidates: null, from: "", asked: 0 };
  const redraw = () => drawHistory(state, known, redraw);
  fill(byId("runs"), byId("runs").firstElementChild, ...known.runs.map(runBox));
  byId("history-read").textContent = `the last ${known.history_read} are read`;
  startSearch((item) => {
    if (state.history.length < known.limits.history) state.history.push(item);
    redraw();
  }, known.limits);
  byId("go").addEventListener("click", () => byId("go").ariaDisabled === "true" || ask(state, known));
  byId("clear").addEventListener("click", () => {
    Object.assign(state, { history: [], candidates: null });
    state.asked += 1;
    fill(byId("answers"));
    byId("ask-status").textContent = "";
    redraw();
    byId("query").focus();
  });
  byId("given-clear").addEventListener("click", () => {
    state.candidates = null;
    redraw();
    byId("go").focus();
  });
  redraw();
  return {
    load(question) {
      Object.assign(state, question);
      redraw();
      ask(state, known);
    },
  };
}

function runBox(run) {
  const facts = [run.rec_model && run.is_llm ? `over ${run.rec_model}` : null, run.representation].filter(Boolean).join(", ");
  return element("label", { class: "box" },
    element("input", { type: "checkbox", checked: true, value: run.name }), ` ${run.name}`,
    facts ? element("span", { class: "hint" }, ` ${facts}`) : null);
}

/** What was found, in words; where there is no room for more, that there may be. */
function tell(count, most) {
  if (!count) return "No title holds that.";
  return count < most ? `${count} found` : `The first ${count}; write more to see others.`;
}

function startSearch(add, limits) {
  const query = byId("query");
  const found = byId("found");
  const hint = byId("found-status").textContent;
  let timer = 0;
  let running = null;
  query.maxLength = limits.query;

  const search = async () => {
    running?.abort();
    running = new AbortController();
    if (!query.value.trim()) {
      fill(found);
      byId("found-status").textContent = hint;
      return;
    }
    const { items } = await request(`/items?query=${encodeURIComponent(query.value)}`, null, running.signal);
    byId("found-status").textContent = tell(items.length, limits.found);
    fill(found, ...items.map((item) => element("li", {}, element("button", {
      type: "button", "aria-label": `Add ${item.title} ${item.item_id}`, on: { click: () => add(item) },
    }, element("span", {}, item.title), " ", element("span", { class: "hint" }, item.item_id)))));
  };
  const careful = () => search().then(() => showError(null)).catch((error) => error.name === "AbortError" || showError(error));

  query.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(careful, PAUSE);
  });
  query.addEventListener("keydown", async (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(timer);
    await careful();
    found.querySelector("button")?.click();
    query.select();
  });
  byId("ask").addEventListener("keydown", (event) => walk(event, query, [...found.querySelectorAll("button")]));
}

/** Arrow keys go from the search through what was found. */
function walk(event, query, buttons) {
  const stops = [query, ...buttons];
  const here = stops.indexOf(document.activeElement);
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  const next = here < 0 ? null : stops[here + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function drawHistory(state, known, redraw) {
  const { history } = state;
  const change = (index, act) => () => {
    act(index);
    redraw();
    const items = byId("history").children;
    (items[Math.min(index, items.length - 1)]?.querySelector(".remove") ?? byId("query")).focus();
  };
  fill(byId("history"), ...history.map((item, index) => element("li", {},
    element("span", { class: "title" }, item.title),
    element("button", { type: "button", "aria-label": `Move ${item.title} earlier`, disabled: index === 0,
      on: { click: change(index, () => history.splice(index - 1, 2, history[index], history[index - 1])) } }, "↑"),
    element("button", { type: "button", class: "remove", "aria-label": `Remove ${item.title}`,
      on: { click: change(index, () => history.splice(index, 1)) } }, "×"))));
  byId("history-empty").hidden = history.length > 0;
  byId("go").disabled = history.length === 0;
  byId("given").hidden = state.candidates === null;
  byId("given-text").textContent = state.candidates === null ? "" : `Chosen from the ${state.candidates.length} candidates of ${state.from}.`;
}

async function ask(state, known) {
  const asked = (state.asked += 1);
  const runs = [...byId("runs").querySelectorAll("input:checked")].map((box) => box.value);
  if (!runs.length) return showError(new Error("Tick at least one run."));
  const question = {
    history: state.history.map((item) => item.item_id), candidates: state.candidates, k: Number(byId("k").value), runs,
  };
  const facts = new Map(known.runs.map((run) => [run.name, run]));
  const status = byId("ask-status");
  byId("go").ariaDisabled = "true"; // it keeps the focus, which a disabled button loses
  status.textContent = "Asking …";
  try {
    const { candidates, answers } = await request("/api/recommend", question);
    if (asked !== state.asked) return;
    showError(null);
    status.textContent = `Each run ranked the same ${candidates.length} candidates. What the LLMs write freely follows.`;
    const cards = new Map(runs.map((name) => [name, card(facts.get(name), answers[name], { history: question.history, candidates, runs: [name] })]));
    fill(byId("answers"), ...[...cards.values()].map((made) => made.root));
    if (status.getBoundingClientRect().top > 0.7 * innerHeight) status.scrollIntoView();
    const free = await request("/api/write", { ...question, candidates });
    if (asked !== state.asked) return;
    for (const [name, made] of cards) fill(made.free, ...freeAnswer(free.answers[name]));
    status.textContent = `Each run ranked the same ${candidates.length} candidates.`;
  } catch (error) {
    if (asked === state.asked) {
      status.textContent = "";
      showError(error);
    }
  } finally {
    byId("go").disabled = state.history.length === 0;
    byId("go").ariaDisabled = null;
  }
}

function card(run, answer, question) {
  const free = element("div", { class: "free", "aria-live": "polite" });
  if (run.is_llm) fill(free, element("p", { class: "hint" }, "Writing …"));
  const rows = answer.items.flatMap((item) => {
    const { button, row } = explainer(item, question, 4);
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", item.share);
    return [element("tr", { class: "answer" },
      element("td", {}, item.rank),
      element("td", { class: "title" }, item.title, " ", button, bar),
      element("td", { class: "number" }, rounded(item.score)),
      element("td", { class: "number" }, `${(100 * item.share).toFixed(0)} %`)), row];
  });
  const table = element("table", {},
    element("caption", {}, `${run.is_fused ? FUSED : SCORES[run.is_llm]} ${SHARE}`),
    element("thead", {}, element("tr", {}, ...["", "Item", "Score", "Share"].map((name, index) =>
      index ? element("th", { scope: "col", class: index > 1 ? "number" : null }, name) : element("td", {})))),
    element("tbody", {}, ...rows));
  const root = element("article", { class: "card", "aria-label": run.name },
    element("h3", {}, run.name, element("span", { class: "hint", title: "correct answers to its test rows" }, ` ${run.correct} of ${run.n} test rows right`)),
    table, run.is_llm ? free : null, answer.prompt ? prompt(answer.prompt) : null);
  return { root, free };
}

function freeAnswer(answer) {
  if (!answer) return [];
  const verdict = answer.valid ? "valid: names one candidate" : "invalid: names no single candidate";
  return [
    element("h4", {}, "Written freely"),
    element("p", { class: "written" }, answer.text.trim() || "(nothing)"),
    element("p", { class: answer.valid ? "right" : "wrong" }, `${answer.valid ? "✓" : "✗"} ${verdict}`),
  ];
}

function prompt({ tokens, segments }) {
  const marks = segments.filter((segment) => segment.part);
  const shown = [...new Set(marks.map((mark) => mark.part))];
  return element("details", {},
    element("summary", {}, `The prompt: ${tokens} tokens${marks.length ? `, ${marks.length} of them vectors` : ""}`),
    shown.length ? element("p", { class: "hint" }, "Marked: ", ...shown.flatMap((part) => [
      element("mark", { class: part }, PARTS[part].short), ` ${PARTS[part].long} `])) : null,
    element("p", { class: "prompt", tabindex: "0", role: "group", "aria-label": "Prompt" }, ...segments.map(segmentNode)));
}

/** A segment; a mark that no title stands before says whose vector it is. */
function segmentNode(segment, index, segments) {
  if (!segment.part) return segment.text;
  const { short, long } = PARTS[segment.part];
  if (segment.item_id === null) return element("mark", { class: segment.part, title: long }, short);
  const before = segments.slice(0, index).findLast((other) => !other.part)?.text ?? "";
  const title = before.endsWith(segment.title) ? null : element("span", {}, ` ${segment.title}`);
  return element("mark", { class: segment.part, title: `${long} of ${segment.title}` }, `${short}\u00a0${segment.item_id}`, title);
}
