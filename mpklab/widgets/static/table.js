// A table of all tasks that draws only the rows in view: sort by any column, click or Enter selects.
import { Selection, clip, exactNs, formatCount, keepDrawn, make } from "./common.js";
import { readTasks } from "./dag.js";

const ROW = 22;

/** Columns of the table: name, whether text, and a cell's sort value and text. */
export function tableColumns(model, meta, columns) {
  const number = (name, of, show = (v) => (v < 0 ? "" : String(v))) => ({ name, of, show, text: false });
  return [
    number("task", (task) => task),
    { name: "operator", of: (task) => model.opOf(task).index, show: (o) => clip(model.ops[o].name, 80), text: true },
    number("tile", (task) => task - model.opOf(task).first),
    { name: "kind", of: (task) => model.opOf(task).kind, show: (k) => meta.kinds[k].name, text: true },
    number("layer", (task) => model.opOf(task).layer),
    ...meta.columns.map((c, k) => number(c.name, (task) => columns["value" + k][task],
      (v) => (v < 0 ? "" : c.name.endsWith("_ns") ? exactNs(v) : formatCount(v)))),
  ];
}

/** Task ids ordered by a column; equal ones keep their order. */
export function ordered(tasks, column, down) {
  const keys = new Float64Array(tasks.length);
  for (let i = 0; i < tasks.length; i++) keys[i] = column.of(tasks[i]);
  const order = Uint32Array.from(tasks, (_, i) => i).sort((a, b) => (down ? keys[b] - keys[a] : keys[a] - keys[b]) || a - b);
  return Int32Array.from(order, (i) => tasks[i]);
}

export function mountTable(el, meta, columns, host = {}) {
  const signal = host.signal, selection = host.selection ?? new Selection();
  const model = readTasks(meta, columns), shown = tableColumns(model, meta, columns);
  const all = Int32Array.from({ length: model.n }, (_, i) => i);
  let rows = all, sort = { column: 0, down: false }, only = false, drawn = {};

  const head = make("tr", {}), body = make("tbody");
  const before = make("tr", { "aria-hidden": "true" }), after = make("tr", { "aria-hidden": "true" });
  const scroll = make("div", { class: "mpk-scroll mpk-tasks", tabindex: 0, role: "region", "aria-label": `Table of ${model.n} tasks` },
    make("table", { "aria-rowcount": model.n + 1 }, make("thead", {}, head), body));
  const toggle = make("button", { type: "button", "aria-pressed": "false", title: "Show the selected tasks only" }, "Selected only");
  const count = make("span", { class: "mpk-hint", "aria-live": "polite" });
  el.append(make("div", { class: "mpk-bar" }, make("h2", {}, "table of tasks"), toggle, count), scroll);
  shown.forEach((column, k) => {
    const button = make("button", { type: "button" }, column.name);
    button.addEventListener("click", () => { sort = { column: k, down: sort.column === k ? !sort.down : !column.text && k > 0 }; refresh(); });
    head.append(make("th", { scope: "col", class: column.text ? "mpk-text" : "" }, button));
  });
  const redraw = keepDrawn(scroll, draw, signal);

  function refresh() {
    const base = only ? Int32Array.from([...selection.ids].filter((id) => id >= 0 && id < model.n).sort((a, b) => a - b)) : all;
    rows = ordered(base, shown[sort.column], sort.down);
    [...head.children].forEach((th, k) => th.setAttribute("aria-sort", k !== sort.column ? "none" : sort.down ? "descending" : "ascending"));
    scroll.scrollTop = 0;
    redraw();
  }
  function draw() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - 8), last = Math.min(rows.length, first + Math.ceil(scroll.clientHeight / ROW) + 24);
    // Rows that stay are not touched: one replaced between press and release would swallow the click.
    if (drawn.rows !== rows || first >= drawn.last || last <= drawn.first) body.replaceChildren(before, ...lines(first, last), after);
    else {
      for (let i = drawn.first; i < first; i++) before.nextSibling.remove();
      for (let i = last; i < drawn.last; i++) after.previousSibling.remove();
      before.after(...lines(first, drawn.first));
      after.before(...lines(drawn.last, last));
    }
    drawn = { rows, first, last };
    before.style.height = `${first * ROW}px`;
    after.style.height = `${(rows.length - last) * ROW}px`;
    for (const tr of body.querySelectorAll("[data-task]")) tr.setAttribute("aria-selected", String(selection.ids.has(Number(tr.getAttribute("data-task")))));
    return tell();
  }
  function lines(first, last) {
    return Array.from({ length: Math.max(0, last - first) }, (_, k) => make("tr", { tabindex: -1, "aria-rowindex": first + k + 2, "data-task": rows[first + k] },
      ...shown.map((column) => make("td", { class: column.text ? "mpk-text" : "" }, column.show(column.of(rows[first + k]))))));
  }
  function tell() {
    count.textContent = only ? `${rows.length} of ${model.n}` : selection.ids.size ? `${selection.ids.size} of ${model.n} selected` : `${model.n}`;
  }
  const choose = (event) => {
    const tr = event.target.closest?.("[data-task]");
    if (!tr) return;
    const task = Number(tr.getAttribute("data-task"));
    selection.set(event.shiftKey ? [...selection.ids, task] : [task], api);
  };
  const on = (target, type, f, options = {}) => target.addEventListener(type, f, { signal, ...options });
  on(scroll, "scroll", redraw);
  on(body, "click", choose);
  on(toggle, "click", () => { only = !only; toggle.setAttribute("aria-pressed", String(only)); refresh(); });
  on(scroll, "keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || !rows.length || event.target !== scroll) return;
    event.preventDefault();
    const now = selection.ids.size ? rows.indexOf([...selection.ids][0]) : -1;
    const next = Math.max(0, Math.min(rows.length - 1, now + by));
    selection.set([rows[next]], api);
    reveal(next);
  });
  function reveal(i) {
    const y = i * ROW;
    if (y < scroll.scrollTop || y > scroll.scrollTop + scroll.clientHeight - 3 * ROW) scroll.scrollTop = Math.max(0, y - scroll.clientHeight / 2);
  }
  selection.on((ids, source) => {
    if (only && source !== api) refresh();
    else if (source !== api && ids.size) {
      const i = rows.indexOf([...ids][0]);
      if (i >= 0) reveal(i);
    }
    redraw();
  }, signal);
  refresh();
  const api = { selection, rows: () => rows, scroll };
  return api;
}
