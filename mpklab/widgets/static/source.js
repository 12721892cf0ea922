// The source behind a selection: the generated entry and the operators' headers, with the lines that matter marked.
import { Selection, button, chooser, clip, make, plural } from "./common.js";

/** Marks of one file that belong to a set of mark lists: [first, last, what], in order, none twice. */
export function marksOfFile(meta, lists, file) {
  const found = new Map();
  for (const list of lists) for (const [f, first, last, what] of meta.marks[list]) if (f === file) found.set(`${first}:${last}:${what}`, [first, last, what]);
  return [...found.values()].sort((a, b) => a[0] - b[0]);
}

/** Operators one of whose marks holds this line of this file. */
export function operatorsAt(meta, marksOf, file, line) {
  const lists = new Set(meta.marks.flatMap((marks, k) => (marks.some(([f, first, last]) => f === file && first <= line && line <= last) ? [k] : [])));
  return meta.ops.flatMap((_, o) => (lists.has(marksOf[o]) ? [o] : []));
}

export function mountSource(el, meta, columns, host = {}) {
  const selection = host.selection ?? new Selection(), first = host.first, marksOf = columns.marks_of;
  let file = 0, lists = [];
  const names = meta.files.map((f) => f.name.replace("mpklab/ops/", ""));
  const choose = chooser("file", names, (name) => { file = names.indexOf(name); draw(); });
  const jumps = make("span", { class: "mpk-legend" });
  const code = make("pre", { class: "mpk-scroll mpk-source", tabindex: 0, role: "region", "aria-label": "Lines of the source" });
  const live = make("div", { class: "mpk-live", role: "status", "aria-live": "polite" });
  el.append(make("div", { class: "mpk-bar" }, make("h2", {}, "source"), choose, jumps), code, live);

  function draw() {
    choose.querySelector("select").value = names[file];
    const marks = marksOfFile(meta, lists, file), what = new Map();
    for (const [a, b, name] of marks) for (let line = a; line <= b; line++) what.set(line, name);
    code.replaceChildren(...meta.files[file].text.split("\n").map((text, k) => {
      const line = k + 1, at = text.indexOf("//");
      const row = make("div", { class: what.has(line) ? "mpk-line mpk-marked" : "mpk-line", "data-line": line });
      row.append(make("i", {}, String(line)), at < 0 ? text : text.slice(0, at));
      if (at >= 0) row.append(make("em", {}, text.slice(at)));
      return row;
    }));
    jumps.replaceChildren(...marks.map(([a, b, name]) => button(`${name} ${a === b ? a : `${a}–${b}`}`, `Go to line ${a}`, () => show(a))));
    if (marks.length) show(marks[0][0]);
  }
  function show(line) {
    const row = code.children[line - 1];
    if (row) code.scrollTop = Math.max(0, row.offsetTop - 22);
  }
  code.addEventListener("click", (event) => {
    const row = event.target.closest?.("[data-line]");
    if (!row || !first || String(document.getSelection())) return;
    const found = operatorsAt(meta, marksOf, file, Number(row.getAttribute("data-line")));
    if (found.length) selection.set(found.flatMap((o) => Array.from({ length: first[o + 1] - first[o] }, (_, i) => first[o] + i)), api);
  }, { signal: host.signal });

  function follow(ids, source) {
    const ops = new Set();
    if (first) for (let o = 0; o + 1 < first.length; o++) for (const id of ids) if (id >= first[o] && id < first[o + 1]) { ops.add(o); break; }
    lists = [...new Set([...ops].map((o) => marksOf[o]).filter((k) => k >= 0))];
    live.textContent = ops.size ? `Source of ${[...ops].slice(0, 3).map((o) => clip(meta.ops[o], 60)).join(", ")}${ops.size > 3 ? ` and ${plural(ops.size - 3, "operator")} more` : ""}.` : "Select a task to see its lines; click a marked line to select the tasks that run it.";
    // The file stays where it is while it says something of the selection: a reader follows lines, not tabs.
    if (lists.length && source !== api && !marksOfFile(meta, lists, file).some(([, , name]) => name !== "variant")) {
      const best = meta.marks[lists[0]].find(([, , , name]) => name === "compute" || name === "load") ?? meta.marks[lists[0]][0];
      if (best) file = best[0];
    }
    if (source === api) return;
    draw();
  }
  const api = { selection, code, get file() { return names[file]; }, marks: () => marksOfFile(meta, lists, file) };
  selection.on(follow, host.signal);
  follow(selection.ids, null);
  return api;
}
