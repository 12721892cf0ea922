// The operator graph as SVG elements made one by one: pan, zoom, hover, and a click that selects an operator's tasks.
import { Selection, Tooltip, button, chooser, clip, css, formatCount, formatNs, keepDrawn, make, readTheme, rgb, upper } from "./common.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text) {
  const el = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) el.setAttribute(key, String(value));
  if (text !== undefined) el.textContent = text;
  return el;
}

/** The box that holds each operator, and which copy of a folded layer it is. */
export function boxOfOperator(boxes) {
  const found = new Map();
  boxes.forEach((box, b) => box.ops.forEach((op, copy) => found.set(op, { box: b, copy })));
  return found;
}

export function mountGraph(el, meta, columns, host = {}) {
  const signal = host.signal, selection = host.selection ?? new Selection(), first = columns.first;
  const owner = boxOfOperator(meta.boxes);
  const copies = Math.max(1, ...meta.boxes.map((box) => box.ops.length));
  let copy = -1; // which of the folded layers a click means; -1 all
  let view = [0, 0, Math.max(1, meta.width), Math.max(1, meta.height)], drag = null, fitted = false, cursor = -1, theme = null;

  const svg = shape("svg", { role: "application", tabindex: 0, "aria-roledescription": "operator graph", width: "100%", height: "100%", "font-size": 11,
    "aria-label": `Operator graph of ${meta.title}: ${meta.boxes.length} boxes. Arrow keys walk along the edges, Enter selects the operator's tasks, Escape leaves.` });
  const box = make("div", { class: "mpk-canvas" }, svg);
  const tip = new Tooltip(box);
  const live = make("div", { class: "mpk-live", "aria-live": "polite", role: "status" });
  const legend = make("div", { class: "mpk-legend", "aria-label": "Colours" });
  const bar = make("div", { class: "mpk-bar" }, make(host.page ? "h1" : "h2", {}, meta.title),
    button("+", "Zoom in", () => zoom(1.5)), button("−", "Zoom out", () => zoom(1 / 1.5)), button("Fit", "Show everything", () => { fitted = false; redraw(); }));
  if (copies > 1 && first[first.length - 1]) {
    const names = ["all layers", ...Array.from({ length: copies }, (_, k) => `copy ${k}`)];
    bar.append(chooser("of", names, (name) => { copy = names.indexOf(name) - 1; }));
  }
  const inside = make("pre", { class: "mpk-scroll", tabindex: 0, "aria-label": "Block graph and thread graph" });
  const panel = make("details", { hidden: !meta.boxes.some((b) => b.inside) }, make("summary", {}, "Inside the operator"), inside);
  const rows = meta.boxes.map((b, k) => {
    const cells = [b.name, meta.kinds[b.kind].name, b.detail, b.ops.length, b.cost ? amount(b.cost) : ""];
    const tr = make("tr", { tabindex: 0 }, ...cells.map((cell, c) => make("td", { class: c < 3 ? "mpk-text" : "" }, typeof cell === "string" ? clip(cell, 80) : String(cell))));
    tr.addEventListener("click", () => choose(k, false));
    tr.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(k, false); });
    return tr;
  });
  const table = make("details", { hidden: !rows.length }, make("summary", {}, `Table of the operators (${rows.length})`), make("div", { class: "mpk-scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...["operator", "kind", "writes", "layers", meta.cost_name].map((name, c) => make("th", { scope: "col", class: c < 3 ? "mpk-text" : "" }, name)))),
    make("tbody", {}, ...rows))));
  el.append(bar, box, legend, live, panel, table);
  box.style.height = (meta.box_height || Math.round(Math.min(560, Math.max(240, meta.height)))) + "px";
  const redraw = keepDrawn(box, draw, signal);

  function amount(cost) { return meta.cost_name.endsWith("ns") ? formatNs(cost) : formatCount(cost); }
  const tip0 = shape("marker", { id: "mpk-tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
  const tipPath = shape("path", { d: "M0,0L8,4L0,8Z" });
  tip0.append(tipPath);
  const defs = shape("defs", {});
  defs.append(tip0);
  svg.append(defs);
  const clusters = meta.clusters.map((cluster) => {
    const [x, y, width, height] = cluster.box;
    const area = shape("rect", { x, y, width, height, rx: 6 });
    const title = shape("text", { x: x + 8, y: y + 13, "font-weight": 600, "paint-order": "stroke", "stroke-width": 3 }, clip(cluster.title, 60));
    svg.append(area);
    return { area, title };
  });
  const lines = meta.lines.map((line) => {
    const path = shape("path", { d: line.path, fill: "none", "marker-end": "url(#mpk-tip)", "stroke-dasharray": line.later ? "5 4" : "none" });
    svg.append(path);
    const words = clip(line.later || line.detail, 30);
    const text = line.at ? shape("text", { x: line.at[0], y: line.at[1] + 3, "text-anchor": "middle", "font-size": 10, "paint-order": "stroke", "stroke-width": 3 }, words) : null;
    return { path, text, line };
  });
  for (const { text } of lines) if (text) svg.append(text);
  for (const { title } of clusters) svg.append(title); // over the lines that cross it
  const boxes = meta.boxes.map((b, k) => {
    const group = shape("g", { "data-box": k }), x = b.x - b.w / 2, y = b.y - meta.high / 2;
    const rect = shape("rect", { x, y, width: b.w, height: meta.high, rx: 4 });
    const stripe = shape("rect", { x, y, width: 5, height: meta.high, rx: 2 });
    const name = shape("text", { x: x + 11, y: y + 16, "font-weight": 600, fill: "#1c1e21" }, clip(b.name, 25));
    const detail = shape("text", { x: x + 11, y: y + 31, "font-size": 10, fill: "#1c1e21" }, clip(`${meta.kinds[b.kind].name} ${b.detail}`, 34));
    group.append(rect, stripe, name, detail);
    svg.append(group);
    return { group, rect, stripe };
  });
  if (!meta.boxes.length) live.textContent = meta.empty;

  const warm = (shade) => css([253, 244, 232].map((p, i) => Math.round(p + ([232, 120, 32][i] - p) * shade)));
  function draw() {
    if (!box.clientWidth) return;
    theme = readTheme(el);
    const palette = meta.palette[theme.dark ? "dark" : "light"].map(rgb), selected = selectedBoxes();
    svg.style.background = css(theme.bg);
    tipPath.setAttribute("fill", css(theme.muted));
    for (const { area, title } of clusters) {
      area.setAttribute("fill", css(theme.line, 0.18));
      area.setAttribute("stroke", css(theme.line));
      title.setAttribute("fill", css(theme.muted));
      title.setAttribute("stroke", css(theme.bg));
    }
    for (const { path, text, line } of lines) {
      const near = selected.has(line.tail) || selected.has(line.head) || line.tail === cursor || line.head === cursor;
      path.setAttribute("stroke", css(near ? theme.accent : theme.muted));
      path.setAttribute("stroke-width", near ? 2 : 1);
      text?.setAttribute("fill", css(near ? theme.fg : theme.muted));
      text?.setAttribute("stroke", css(theme.bg));
    }
    meta.boxes.forEach((b, k) => {
      const { rect, stripe } = boxes[k], on = selected.has(k);
      rect.setAttribute("fill", warm(b.shade));
      rect.setAttribute("stroke", css(on || k === cursor ? theme.accent : theme.line));
      rect.setAttribute("stroke-width", on ? 4 : k === cursor ? 3 : 1);
      rows[k].setAttribute("aria-selected", String(on));
      stripe.setAttribute("fill", css(palette[meta.kinds[b.kind].colour % palette.length]));
    });
    if (!fitted) fit();
    svg.setAttribute("viewBox", view.join(" "));
    const shown = meta.kinds.map((kind) => {
      const swatch = make("i", { class: "mpk-swatch" });
      swatch.style.background = css(palette[kind.colour % palette.length]);
      return make("span", {}, swatch, clip(kind.name, 60));
    });
    const scale = make("i", { class: "mpk-swatch" });
    scale.style.background = `linear-gradient(90deg, ${warm(0)}, ${warm(1)})`;
    scale.style.width = "40px";
    legend.replaceChildren(...shown, make("span", {}, scale, `more ${meta.cost_name}`));
  }

  // A tall graph fills the width and begins at its top; it is read by dragging, not by squinting.
  function fit() {
    const wide = box.clientWidth, high = box.clientHeight;
    const scale = Math.min(1.3, Math.max(wide / meta.width, 0.1), Math.max(high / meta.height, 0.72));
    view = [meta.width / 2 - wide / scale / 2, meta.height * scale <= high ? meta.height / 2 - high / scale / 2 : 0, wide / scale, high / scale];
    fitted = true;
  }
  function zoom(factor, fx = 0.5, fy = 0.5) {
    const next = Math.max(20, Math.min(40 * Math.max(meta.width, meta.height), view[2] / factor)), k = next / view[2];
    view = [view[0] + view[2] * fx * (1 - k), view[1] + view[3] * fy * (1 - k), next, view[3] * k];
    redraw();
  }

  function selectedBoxes() {
    const found = new Set();
    for (const id of selection.ids) {
      const op = upper(first, id) - 1;
      if (owner.has(op)) found.add(owner.get(op).box);
    }
    return found;
  }
  function tasksOf(k) {
    const ops = meta.boxes[k].ops, chosen = copy >= 0 && copy < ops.length ? [ops[copy]] : ops;
    return chosen.flatMap((op) => Array.from({ length: first[op + 1] - first[op] }, (_, i) => first[op] + i));
  }
  function linesFor(k) {
    const b = meta.boxes[k], into = meta.lines.filter((line) => line.head === k), from = meta.lines.filter((line) => line.tail === k);
    const cost = amount(b.cost) + (meta.cost_name.endsWith("ns") ? "" : ` ${meta.cost_name}`);
    const out = [clip(b.name, 120), meta.kinds[b.kind].name + (b.detail ? ` · writes ${b.detail}` : ""), b.cost ? cost : "", b.ops.length > 1 ? `in ${b.ops.length} layers` : ""];
    for (const line of into.slice(0, 4)) out.push(`reads ${clip(line.tensor, 60)} ${line.detail}${line.later ? ` (${line.later})` : ""}`);
    if (from.length) out.push(`read by ${from.slice(0, 4).map((line) => clip(meta.boxes[line.head].name, 30)).join(", ")}`);
    return out.filter(Boolean);
  }

  const on = (target, type, f, options = {}) => target.addEventListener(type, f, { signal, ...options });
  const hit = (event) => { const g = event.target.closest?.("[data-box]"); return g ? Number(g.getAttribute("data-box")) : -1; };
  on(svg, "pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, view: [...view], moved: false, box: hit(event) }; });
  on(svg, "pointermove", (event) => {
    const r = svg.getBoundingClientRect();
    if (drag && event.buttons) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (Math.hypot(dx, dy) > 3 && !drag.moved) { drag.moved = true; svg.setPointerCapture(event.pointerId); }
      if (drag.moved) {
        view = [drag.view[0] - (dx * view[2]) / r.width, drag.view[1] - (dy * view[3]) / r.height, view[2], view[3]];
        redraw();
      }
      return;
    }
    const k = hit(event);
    svg.style.cursor = k >= 0 ? "pointer" : "grab";
    if (k >= 0) tip.show(linesFor(k), event.clientX - r.left, event.clientY - r.top);
    else tip.hide();
  });
  on(svg, "pointerup", (event) => {
    const was = drag;
    drag = null;
    if (!was || was.moved) return;
    if (was.box < 0) { cursor = -1; selection.set([], api); redraw(); return; }
    choose(was.box, event.shiftKey);
  });
  on(svg, "pointerleave", () => tip.hide());
  on(svg, "wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const r = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 16 : 1) * 0.002), (event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height);
  }, { passive: false });

  function choose(k, extend) {
    cursor = k;
    tell(k);
    selection.set(extend ? [...selection.ids, ...tasksOf(k)] : tasksOf(k), api);
    redraw();
  }
  function walk(k) {
    cursor = k;
    const b = meta.boxes[k];
    if (b.x < view[0] || b.x > view[0] + view[2] || b.y < view[1] || b.y > view[1] + view[3]) view = [b.x - view[2] / 2, b.y - view[3] / 2, view[2], view[3]];
    tell(k);
    redraw();
  }
  function tell(k) {
    live.textContent = linesFor(k).join(", ");
    inside.textContent = meta.boxes[k].inside || "Nothing is known.";
    panel.querySelector("summary").textContent = `Inside ${clip(meta.boxes[k].name, 60)}`;
  }
  on(svg, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !meta.boxes.length) return;
    const along = (from, to) => {
      if (cursor < 0) return walk(0);
      const line = meta.lines.find((l) => l[from] === cursor && !l.later);
      if (line) walk(line[to]);
      return undefined;
    };
    const keys = {
      ArrowDown: () => along("tail", "head"), ArrowUp: () => along("head", "tail"),
      ArrowRight: () => walk(Math.min(meta.boxes.length - 1, cursor + 1)), ArrowLeft: () => walk(Math.max(0, cursor - 1)),
      Enter: () => cursor >= 0 && choose(cursor, event.shiftKey),
      Escape: () => { cursor = -1; selection.set([], api); live.textContent = "Left the selection."; redraw(); },
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => { fitted = false; redraw(); },
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  selection.on((ids, source) => {
    if (source !== api) {
      const found = [...selectedBoxes()];
      live.textContent = found.length ? `Selected: ${found.slice(0, 6).map((k) => meta.boxes[k].name).join(", ")}${found.length > 6 ? " …" : ""}` : "";
      if (found.length === 1) walk(found[0]);
    }
    redraw();
  }, signal);

  redraw();
  const api = { selection, boxes: meta.boxes, choose, zoom, selectedBoxes, element: svg };
  return api;
}
