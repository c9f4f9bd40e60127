// The test rows: who was right on which, and one row with all that was asked and answered.

import { byId, element, fill, request, rounded, showError } from "./dom.js";

const PAGE = 20;
const CHOICES = { any: "right or wrong", right: "right", wrong: "wrong" };

/** Wire the views up. @returns {Object} what opens "cases" and "case". */
export function startBrowsing(known, askAgain) {
  const state = { offset: 0, asked: 0 };
  fill(byId("filters"), ...known.runs.map((run, index) => element("div", {},
    element("label", { for: `filter-${index}` }, run.name),
    element("select", { id: `filter-${index}`, name: run.name },
      ...Object.entries(CHOICES).map(([value, text]) => element("option", { value }, text))))));
  const turn = (by) => () => {
    state.offset = Math.max(0, state.offset + by);
    list(state).catch(showError);
  };
  byId("filters").addEventListener("change", () => {
    state.offset = 0;
    list(state).catch(showError);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", turn(-PAGE));
  byId("next").addEventListener("click", turn(PAGE));
  return { cases: () => list(state), case: (row) => open(row, askAgain) };
}

async function list(state) {
  const asked = (state.asked += 1);
  const parameters = new URLSearchParams({ offset: state.offset, limit: PAGE });
  for (const select of byId("filters").querySelectorAll("select")) {
    if (select.value !== "any") parameters.append(select.value, select.name);
  }
  const { count, n, cases } = await request(`/api/cases?${parameters}`);
  if (asked !== state.asked) return;
  showError(null);
  const last = state.offset + cases.length;
  byId("cases-status").textContent = `${count} of ${n} rows${cases.length && count > PAGE ? `, ${state.offset + 1} to ${last} of them here` : ""}`;
  fill(byId("case-list"), ...cases.map((found) => element("li", {},
    element("a", { href: `#case=${found.row}` },
      element("span", { class: "hint" }, `row ${found.row}, user ${found.user}`),
      element("span", { class: "title" }, found.target_title),
      element("span", { class: "verdicts" }, ...Object.entries(found.correct).map(([name, isRight]) => verdict(name, isRight)))))));
  byId("previous").disabled = state.offset === 0;
  byId("next").disabled = last >= count;
}

function verdict(name, isRight) {
  return element("span", { class: `badge ${isRight ? "right" : "wrong"}` },
    element("span", { "aria-hidden": "true" }, isRight ? "✓ " : "✗ "), name, element("span", { class: "unseen" }, isRight ? " right" : " wrong"));
}

async function open(row, askAgain) {
  byId("case-title").textContent = `Row ${row}`;
  fill(byId("case-body"));
  const found = await request(`/api/cases/${encodeURIComponent(row)}`);
  byId("case-title").textContent = `Row ${found.row}: user ${found.user}`;
  const names = Object.keys(found.answers);
  const history = found.history.map((item, index) => ({ item_id: item, title: found.history_titles[index] }));
  const again = element("button", { type: "button", class: "primary", on: { click: () => askAgain({
    history, candidates: found.candidates.map((candidate) => candidate.item_id), from: `row ${found.row}`,
  }) } }, "Ask this now");
  fill(byId("case-body"),
    element("div", { class: "case" },
      element("div", {}, element("h3", {}, "Has seen"), element("ol", {}, ...history.map((item) => element("li", {}, item.title)))),
      element("div", {}, element("h3", {}, "Answers"), answers(found),
        element("p", {}, "Next was ", element("b", { class: "right" }, found.target_title)), again)),
    element("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Candidates and scores" }, candidates(found, names)));
  byId("case-title").focus();
}

function answers(found) {
  const rows = Object.entries(found.answers).map(([name, answer]) => element("tr", {},
    element("th", { scope: "row" }, name),
    element("td", { class: "title" }, answer.answer_text ?? answer.answer_title ?? "(nothing)"),
    element("td", { class: `verdict ${answer.correct ? "right" : "wrong"}` },
      answer.correct ? "✓ right" : answer.valid ? "✗ wrong" : "✗ invalid")));
  return element("table", {}, element("tbody", {}, ...rows));
}

function candidates(found, names) {
  const best = Object.fromEntries(names.map((name) => [name, Math.max(...found.candidates.map((one) => one.scores[name] ?? -Infinity))]));
  const rows = found.candidates.map((one) => element("tr", { class: one.is_target ? "target" : null },
    element("th", { scope: "row" }, one.title, one.is_target ? element("span", { class: "badge right" }, "target") : null),
    ...names.map((name) => {
      const score = one.scores[name];
      const isBest = score !== undefined && score === best[name];
      return element("td", { class: isBest ? "number best" : "number" },
        score === undefined ? "–" : rounded(score), isBest ? element("span", { class: "unseen" }, " highest") : null);
    })));
  return element("table", {},
    element("caption", {}, `${found.candidates.length} candidates with each run's score; its highest is framed`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Candidate"),
      ...names.map((name) => element("th", { scope: "col", class: "number" }, name)))),
    element("tbody", {}, ...rows));
}
