// The page's frame: which view is shown, as the address after # says.

import { startAsking } from "./ask.js";
import { startBrowsing } from "./cases.js";
import { byId, request, showError } from "./dom.js";
import { startAdding } from "./items.js";

const VIEWS = ["ask", "cases", "case"];

/** "#case=12" is the view "case" of "12". */
function place() {
  const [name, value = ""] = location.hash.slice(1).split("=");
  return VIEWS.includes(name) ? [name, value] : ["ask", ""];
}

function show(openers) {
  const [name, value] = place();
  showError(null);
  for (const view of VIEWS) byId(view).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.hash === `#${name}` || (name === "case" && link.hash === "#cases");
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  openers[name]?.(value).catch(showError);
}

async function start() {
  const known = await request("/api/runs");
  byId("about").textContent =
    `${known.dataset} · ${known.runs.map((run) => run.name).join(", ")} · each chooses among the same ${known.candidate_num} candidates`;
  startAdding(known);
  const asking = startAsking(known);
  const openers = startBrowsing(known, (question) => {
    asking.load(question);
    location.hash = "#ask";
  });
  addEventListener("hashchange", () => {
    if (location.hash !== "#main") show(openers);
  });
  show(openers);
}

start().catch(showError);
