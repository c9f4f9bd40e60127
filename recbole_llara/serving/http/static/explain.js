// Where an item comes from: a button beside it, and a row below it that opens with what was asked again.

import { element, fill, request, rounded, showError } from "./dom.js";

const REMOVED = 3; // items of the history that are told
let opened = 0; // rows made so far, for their ids

/**
 * A button that opens an explanation, and the table row that it opens.
 * @param {Object} item what is explained: item_id, title.
 * @param {Object} question history and candidates as they were asked, and the one run that answered.
 * @param {number} columns of the table.
 * @returns {{button: Element, row: Element}}
 */
export function explainer(item, question, columns) {
  const place = element("td", { colspan: columns, "aria-live": "polite" });
  const row = element("tr", { id: `why-${(opened += 1)}`, class: "because", hidden: true }, place);
  let isAsked = false;
  const toggle = async () => {
    row.hidden = !row.hidden;
    button.setAttribute("aria-expanded", String(!row.hidden));
    if (isAsked || row.hidden) return;
    isAsked = true;
    fill(place, element("p", { class: "hint" }, "Asking again …"));
    try {
      const { answers } = await request("/api/explain", { ...question, item: item.item_id, k: REMOVED });
      showError(null);
      fill(place, ...told(answers[question.runs[0]], item));
    } catch (error) {
      isAsked = false;
      fill(place);
      row.hidden = true;
      button.setAttribute("aria-expanded", "false");
      showError(error);
    }
  };
  const button = element("button", {
    type: "button", class: "why", "aria-expanded": "false", "aria-controls": row.id, "aria-label": `Why? ${item.title}`, on: { click: toggle },
  }, "Why?");
  return { button, row };
}

const signed = (value) => (value > 0 ? `+${rounded(value)}` : rounded(value));
const number = (...shown) => element("td", { class: "number" }, ...shown);

function told(found, item) {
  const own = found.candidates.find((one) => one.item_id === item.item_id);
  const systems = Object.fromEntries([
    ...(found.fusion ? [[found.system, "answer"]] : []), ...(found.llm ? [[found.llm, "llm"]] : []), [found.recommender, "recommender"],
  ]);
  return [
    standings(found, own, systems),
    found.fusion ? parts(found, own) : null,
    found.removals ? removals(found, systems) : null,
    element("details", {},
      element("summary", {}, "What the numbers are"),
      element("dl", {}, ...Object.entries(found.meanings).flatMap(([name, meaning]) => [
        element("dt", {}, name.replaceAll("_", " "), { true: ": yes", false: ": no" }[found[name]] ?? null), element("dd", {}, meaning),
      ]))),
  ];
}

function standings(found, own, systems) {
  const count = found.candidates.length;
  const line = (name, standing, before = null) => element("tr", {},
    element("th", { scope: "row", class: before ? "erased" : null }, name),
    number(standing ? rounded(standing.log_prob) : "–"),
    number(standing ? `${standing.rank}` : "–"),
    number(!before ? "" : standing ? signed(standing.log_prob - before.log_prob) : "does not apply"));
  const rows = Object.entries(systems).flatMap(([name, field]) => [
    line(name, own[field]),
    ...(field === "llm" ? [
      line("without behavioural tokens", own.without_behavioural_tokens, own.llm),
      line("without the history's titles", own.without_history_titles, own.llm),
    ] : []),
  ]);
  const unseen = own.unseen_rank === null ? "it is in the history" : `rank ${own.unseen_rank} of ${found.unseen} unseen items`;
  return scrolled("According to each system", `Log-probability among the ${count} candidates, in nats. ${found.recommender}: ${unseen}.`,
    ["According to", "Log-prob", "Rank", "Change"], rows);
}

function parts(found, own) {
  const rows = Object.entries(own.parts).map(([name, part]) => element("tr", {},
    element("th", { scope: "row" }, name), number(found.fusion.weights[name].toFixed(3)), number(rounded(part.gave)), number(signed(part.lead))));
  return scrolled("Parts of the sum", "What each part gave to the sum, in nats, and its lead over the candidates' mean.",
    ["Part", "Weight", "Gave", "Lead"], rows);
}

function removals(found, systems) {
  const rows = found.removals.map((removal) => element("tr", {},
    element("th", { scope: "row" }, removal.title),
    ...Object.values(systems).map((field) => number(element("span", {}, signed(removal[field].change)), " ", element("span", { class: "hint" }, `rank ${removal[field].rank}`)))));
  return scrolled("Left out of the history", "Left out of the history: the change in nats, and the rank then.",
    ["Item", ...Object.keys(systems)], rows, "number system");
}

/** A table that scrolls by itself where there is no room for it. */
function scrolled(label, caption, head, rows, column = "number") {
  return element("div", { class: "wide", tabindex: "0", role: "group", "aria-label": label }, element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head.map((name, index) => element("th", { scope: "col", class: index ? column : null }, name)))),
    element("tbody", {}, ...rows)));
}
