// An item that the runs have never seen, told by its title.

import { byId, request, showError } from "./dom.js";

/** Wire the form up, where the service takes items. */
export function startAdding(known) {
  const form = byId("new-item");
  form.hidden = !known.takes_items;
  byId("new-title").maxLength = known.limits.query;
  byId("new-id").maxLength = known.limits.query;
  form.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const [title, id] = [byId("new-title"), byId("new-id")];
    byId("new-status").textContent = "Adding …";
    try {
      const done = await request("/items", { items: [{ item_id: id.value.trim(), title: title.value }] });
      const what = done.added ? "Added" : done.renamed ? "Renamed" : "Nothing changed for";
      const lasts = done.kept ? "" : " It is gone when the service stops.";
      byId("new-status").textContent = `${what}: ${title.value}.${lasts}`;
      showError(null);
      form.querySelector("form").reset();
      title.focus();
    } catch (error) {
      byId("new-status").textContent = "";
      showError(error);
    }
  });
}
