// Timeline, task graph, operator graph and task table as one view with one selection, in the browser alone.
import { Selection, button, make, notesOf, plural } from "./common.js";
import { mountDag } from "./dag.js";
import { mountGraph } from "./opgraph.js";
import { mountSource } from "./source.js";
import { mountTable } from "./table.js";
import { mountTimeline } from "./timeline.js";

/** The columns of one part: their names begin with the part's own. */
export function columnsOf(columns, part) {
  return Object.fromEntries(Object.entries(columns).filter(([name]) => name.startsWith(part + ".")).map(([name, values]) => [name.slice(part.length + 1), values]));
}

export function mountStudio(el, meta, columns, host = {}) {
  const selection = host.selection ?? new Selection(), inner = { ...host, selection, page: false };
  const status = make("span", { class: "mpk-hint", "aria-live": "polite" });
  el.append(make("div", { class: "mpk-bar" }, make(host.page ? "h1" : "h2", {}, meta.title), status, make("span", { class: "mpk-space" }),
    button("Clear selection", "Select nothing", () => selection.set([]))));
  el.append(...notesOf(meta));
  const parts = {}, grid = make("div", { class: "mpk-grid" });
  const area = (name, label) => {
    const section = make("section", { class: `mpk-part mpk-part-${name}`, "aria-label": label });
    grid.append(section);
    return section;
  };
  el.append(grid);
  if (meta.timeline) parts.timeline = mountTimeline(area("timeline", "Timeline"), meta.timeline, columnsOf(columns, "timeline"), inner);
  if (meta.graph) parts.graph = mountGraph(area("graph", "Operator graph"), meta.graph, columnsOf(columns, "graph"), inner);
  if (meta.dag) {
    parts.dag = mountDag(area("dag", "Task graph"), meta.dag, columnsOf(columns, "dag"), inner);
    parts.table = mountTable(area("table", "Tasks"), meta.dag, columnsOf(columns, "dag"), inner);
    if (meta.source) parts.source = mountSource(area("source", "Source"), meta.source, columnsOf(columns, "source"), { ...inner, first: columns["dag.first"] });
  }
  const tell = (ids) => { status.textContent = ids.size ? `${plural(ids.size, "task")} selected` : "Nothing selected: click a span, a tile, an operator or a row."; };
  selection.on(tell, host.signal);
  tell(selection.ids);
  return { selection, ...parts, setState: (state) => parts.dag?.setState(state), frames: parts.timeline?.frames ?? parts.dag?.frames ?? [] };
}
