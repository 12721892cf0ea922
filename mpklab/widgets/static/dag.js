// The task graph on one canvas: operators as boxes of tiles, laid out by layer; arrows only for what is selected.
import { Selection, Tooltip, button, chooser, clip, css, exactNs, formatCount, formatNs, keepDrawn, legendEntry, make, mix, notesOf, pixel, plural, ramp, readTheme, rgb, upper } from "./common.js";

// Layout in cells: one task is one cell. task_dag.py places with the same numbers for its still picture.
export const TITLE = 3, PAD = 1, GAP = 2, BETWEEN = 3, HEAD = 6;
const MOST_ARROWS = 600;

// ---- the model ----------------------------------------------------------------------------------------------------

/** Operators, tasks, edge sets and events from the columns that task_dag.py writes. */
export function readTasks(meta, columns) {
  const first = columns.first, n = first.length ? first[first.length - 1] : 0;
  const ops = meta.ops.map((op, o) => ({ ...op, index: o, first: first[o], count: first[o + 1] - first[o], group: columns.group[o], into: [], from: [] }));
  const sets = [];
  for (let s = 0, at = 0; s < columns.edge_producer.length; s++) {
    const producer = columns.edge_producer[s], consumer = columns.edge_consumer[s], size = ops[consumer].count;
    const set = {
      producer, consumer, lag: columns.edge_lag[s], kind: meta.edge_kinds[columns.edge_kind[s]], tensor: meta.tensors[columns.edge_tensor[s]],
      begin: columns.edge_begin.subarray(at, at + size), length: columns.edge_length.subarray(at, at + size),
    };
    at += size;
    sets.push(set);
    ops[consumer].into.push(set);
    ops[producer].from.push(set);
  }
  const groups = [];
  for (const op of ops) (groups[op.group] ??= { name: meta.groups[op.group], ops: [] }).ops.push(op);
  const opOf = (task) => ops[upper(first, task) - 1];
  return { n, ops, groups, sets, first, opOf, columns };
}

/** What a task comes after: ranges of producer tasks. Lag 1 means the iteration before. */
export function predecessors(model, task) {
  const op = model.opOf(task), tile = task - op.first, found = [];
  for (const set of op.into) {
    if (!set.length[tile]) continue;
    const a = model.ops[set.producer].first + set.begin[tile];
    found.push({ set, a, b: a + set.length[tile] });
  }
  return found;
}

/** What comes after a task: ranges of consumer tasks. */
export function successors(model, task) {
  const op = model.opOf(task), tile = task - op.first, found = [];
  for (const set of op.from) {
    const base = model.ops[set.consumer].first;
    for (let j = 0, start = -1; j <= set.begin.length; j++) {
      const hit = j < set.begin.length && set.begin[j] <= tile && tile < set.begin[j] + set.length[j];
      if (hit && start < 0) start = j;
      if (!hit && start >= 0) { found.push({ set, a: base + start, b: base + j }); start = -1; }
    }
  }
  return found;
}

/** Boxes of all operators in cells. Groups (layers) are columns of operators, wrapped so that the whole fits `aspect`. */
export function place(model, across, aspect, folded, foldedGroups) {
  const tall = (op) => folded.has(op.index) || !op.count ? 1 : Math.ceil(op.count / across);
  const heights = model.groups.map((group, g) =>
    foldedGroups.has(g) ? HEAD + 2 * PAD + 2 : HEAD + group.ops.reduce((sum, op) => sum + TITLE + tall(op) + 2 * PAD + GAP, 0));
  const width = across + 2 * PAD;
  const arrange = (perBand) => {
    let y = 0;
    const at = [];
    for (let g = 0; g < heights.length; g += perBand) {
      const band = heights.slice(g, g + perBand);
      band.forEach((_, k) => at.push([k * (width + BETWEEN), y]));
      y += Math.max(...band) + GAP;
    }
    return { at, width: Math.min(perBand, heights.length) * (width + BETWEEN) - BETWEEN, height: Math.max(1, y - GAP) };
  };
  let best = arrange(1), waste = Infinity;
  for (let perBand = 1; perBand <= Math.max(1, heights.length); perBand++) {
    const tried = arrange(perBand), size = Math.max(tried.width / aspect, tried.height);
    if (size < waste - 1e-9) { waste = size; best = { ...tried, perBand }; }
  }
  const boxes = [], heads = [];
  model.groups.forEach((group, g) => {
    let [x, y] = best.at[g];
    heads.push({ x, y, w: width, h: heights[g], group: g });
    if (foldedGroups.has(g)) {
      for (const op of group.ops) boxes[op.index] = { x, y, w: width, h: heights[g], rows: 0, hidden: true };
      return;
    }
    y += HEAD;
    for (const op of group.ops) {
      const h = TITLE + tall(op) + 2 * PAD;
      boxes[op.index] = { x, y, w: width, h, rows: folded.has(op.index) ? 0 : tall(op), hidden: false };
      y += h + GAP;
    }
  });
  return { boxes, heads, width: best.width, height: best.height, perBand: best.perBand ?? 1 };
}

// ---- search -------------------------------------------------------------------------------------------------------

/** `op:attention layer:3-5 dur_ns>2000 word` as tests on a task; unknown keys are reported, not ignored. */
export function parseQuery(text, numeric) {
  const tests = [], problems = [];
  for (const token of text.trim().split(/\s+/).filter(Boolean)) {
    let match;
    if ((match = /^([a-z_]\w*)(<=|>=|<|>|=)(.+)$/i.exec(token)) && numeric.includes(match[1])) {
      const [, name, sign, value] = match, limit = Number(value);
      if (Number.isNaN(limit)) { problems.push(`${token}: not a number`); continue; }
      const compare = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit, "=": (v) => v === limit }[sign];
      tests.push({ column: name, test: compare });
    } else if ((match = /^(layer|task|tile|worker):(\d+)(?:-(\d+))?$/i.exec(token))) {
      const low = Number(match[2]), high = Number(match[3] ?? match[2]);
      tests.push({ field: match[1].toLowerCase(), test: (v) => v >= low && v <= high });
    } else if ((match = /^(op|kind|tensor):(.+)$/i.exec(token))) {
      const wanted = match[2].toLowerCase();
      tests.push({ field: match[1].toLowerCase(), test: (v) => v.toLowerCase().includes(wanted) });
    } else if (/[:<>=]/.test(token)) problems.push(`${token}: expected op: kind: layer: task: tile: worker: tensor: or a column`);
    else tests.push({ field: "op", test: (v) => v.toLowerCase().includes(token.toLowerCase()) });
  }
  return { tests, problems };
}

/** Task ids that pass every test, in order. */
export function search(model, meta, tests) {
  const found = [];
  if (!tests.length) return found;
  for (const op of model.ops) {
    const perTask = [];
    let whole = true;
    for (const { field, column, test } of tests) {
      if (field === "op") whole &&= test(op.name) || test(meta.kinds[op.kind].name);
      else if (field === "kind") whole &&= test(meta.kinds[op.kind].name);
      else if (field === "layer") whole &&= test(op.layer);
      else if (field === "tensor") whole &&= op.into.some((set) => test(set.tensor)) || op.from.some((set) => test(set.tensor));
      else if (field === "task") perTask.push((task) => test(task));
      else if (field === "tile") perTask.push((task) => test(task - op.first));
      else {
        const name = field === "worker" ? "worker" : column, k = meta.columns.findIndex((c) => c.name === name), values = model.columns["value" + k];
        perTask.push((task) => values !== undefined && test(values[task]));
      }
    }
    if (!whole) continue;
    for (let task = op.first; task < op.first + op.count; task++) if (perTask.every((test) => test(task))) found.push(task);
  }
  return found;
}

// ---- the view -----------------------------------------------------------------------------------------------------

export function mountDag(el, meta, columns, host = {}) {
  const signal = host.signal, selection = host.selection ?? new Selection();
  const model = readTasks(meta, columns);
  const across = meta.across;
  const folded = new Set(), foldedGroups = new Set(meta.collapsed ? model.groups.keys() : []);
  let layout = null, aspect = 0, scale = 0, ox = 0, oy = 0, fitted = false;
  let theme = null, classOf = null, words = null, colours = [], image = null, entries = [], alone = -1;
  let hover = null, cursor = -1, drag = null, matches = null, path = null, near = { before: [], after: [] };
  const frames = [];
  let marks = meta.missing ?? [];

  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "task graph", "aria-label": describe() });
  const box = make("div", { class: "mpk-canvas" }, canvas);
  const tip = new Tooltip(box);
  const live = make("div", { class: "mpk-live", "aria-live": "polite", role: "status" });
  const legend = make("div", { class: "mpk-legend", "aria-label": "Colours" });
  const modes = ["kind", "layer", ...meta.columns.map((c) => c.name)];
  const mode = chooser("colour by", modes, (name) => { setMode(name); redraw(); });
  const query = make("input", { type: "search", placeholder: "op:attention layer:3", "aria-label": "Search tasks", size: 20 });
  const count = make("span", { class: "mpk-hint", "aria-live": "polite" });
  const bar = make("div", { class: "mpk-bar" },
    make(host.page ? "h1" : "h2", {}, meta.title), mode,
    button("+", "Zoom in", () => zoom(1.5)), button("−", "Zoom out", () => zoom(1 / 1.5)), button("Fit", "Show everything", fit),
    button("Fold layers", "Collapse every layer to one box", () => foldAll(true)), button("Unfold", "Expand every layer and operator", () => foldAll(false)), query, count);
  for (const [name, column] of meta.paths.map((p) => [p.name, p.column])) {
    const toggle = button(clip(name, 40), `Show the ${clip(name, 400)}`, () => {
      path = path?.name === name ? null : { name, tasks: columns[column] };
      toggle.setAttribute("aria-pressed", String(path?.name === name));
      redraw();
    });
    toggle.setAttribute("aria-pressed", "false");
    bar.append(toggle);
  }
  if (meta.hint !== false) bar.append(make("span", { class: "mpk-space" }), make("span", { class: "mpk-hint" }, "Ctrl + wheel zooms · drag pans · double-click folds"));
  const table = make("details", {}, make("summary", {}, "Table of the selection and its neighbours"), make("div", { class: "mpk-scroll" }));
  table.addEventListener("toggle", fillTable);
  const state = make("div", { class: "mpk-state", role: "status", "aria-live": "polite", hidden: true });
  el.append(bar, ...notesOf(meta), state, box, legend, live, table);
  box.style.height = (meta.height || 480) + "px";
  const context = canvas.getContext("2d", { alpha: false });
  const redraw = keepDrawn(box, draw, signal);

  function describe() {
    return `Task graph of ${meta.title}: ${model.n} tasks of ${model.ops.length} operators. Left and right walk along the tiles of an operator, ` +
      "up and down along dependencies, Enter selects, f folds the operator and Shift f its layer, Escape leaves, plus and minus zoom, 0 shows everything.";
  }
  const value = (k, task) => columns["value" + k][task];
  const taskName = (task) => { const op = model.opOf(task); return `${clip(op.name, 100)}[${task - op.first}]`; };

  // ---- colours
  function setMode(name) {
    mode.querySelector("select").value = name;
    classOf = new Uint8Array(model.n);
    const palette = meta.palette[theme?.dark ? "dark" : "light"].map(rgb);
    const cycle = (k) => (k < palette.length ? palette[k] : mix(palette[k % palette.length], theme?.dark ? [255, 255, 255] : [0, 0, 0], 0.3));
    let labels;
    if (name === "kind") {
      labels = meta.kinds.map((kind) => kind.name);
      colours = meta.kinds.map((kind) => cycle(kind.colour));
      for (const op of model.ops) classOf.fill(op.kind, op.first, op.first + op.count);
    } else {
      const steps = 64, k = meta.columns.findIndex((c) => c.name === name);
      const of = name === "layer" ? (task, op) => op.layer : (task) => value(k, task);
      let low = Infinity, high = -Infinity;
      for (const op of model.ops) for (let t = op.first; t < op.first + op.count; t++) {
        const v = of(t, op);
        if (v >= 0 && v < low) low = v;
        if (v > high) high = v;
      }
      const log = name !== "layer" && name !== "worker" && low > 0 && high / low > 100;
      const to = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / Math.max(1e-12, high - low));
      colours = Array.from({ length: steps }, (_, i) => ramp(theme?.dark ? 0.12 + (0.88 * i) / (steps - 1) : (0.95 * i) / (steps - 1)));
      colours.push(theme ? theme.muted : [128, 128, 128]); // no value
      for (const op of model.ops) for (let t = op.first; t < op.first + op.count; t++) {
        const v = of(t, op);
        classOf[t] = v >= 0 && high >= low ? Math.max(0, Math.min(steps - 1, Math.floor(to(v) * steps))) : steps;
      }
      const unit = name.endsWith("_ns") ? formatNs : formatCount;
      const at = (t) => unit(log ? low * (high / low) ** t : low + (high - low) * t);
      labels = high >= low ? [0, 0.25, 0.5, 0.75, 1].map((t) => [Math.min(steps - 1, Math.floor(t * steps)), at(t)]) : [];
      if (classOf.includes(steps)) labels.push([steps, "no value"]);
      if (log) labels.push([-1, "logarithmic"]);
    }
    mode.name = name;
    words = Uint32Array.from(colours, pixel);
    alone = -1;
    entries = typeof labels[0] === "string" ? labels.map((label, k) => [k, label]) : labels;
    drawLegend(name === "kind");
  }
  // A kind that is pressed stands out alone; a scale of values has nothing to press.
  function drawLegend(kinds) {
    legend.replaceChildren(...entries.map(([k, label]) => {
      if (k < 0) return make("span", {}, label);
      if (kinds) return legendEntry(css(colours[k]), label, false, alone === k, () => { alone = alone === k ? -1 : k; drawLegend(true); redraw(); });
      const swatch = make("i", { class: "mpk-swatch" });
      swatch.style.background = css(colours[k]);
      return make("span", {}, swatch, clip(label, 60));
    }));
  }

  // ---- geometry
  function arrange(keep = null) {
    const wide = Math.max(0.5, box.clientWidth / Math.max(60, box.clientHeight));
    if (!aspect) aspect = wide;
    const before = keep && layout ? layout.heads[keep.group] : null;
    layout = place(model, across, aspect, folded, foldedGroups);
    if (before) {
      const after = layout.heads[keep.group];
      ox += (before.x - after.x) * scale;
      oy += (before.y - after.y) * scale;
    }
  }
  function fit() {
    aspect = 0;
    arrange();
    let w = box.clientWidth - 16;
    const h = box.clientHeight - 16;
    scale = Math.min(w / layout.width, h / layout.height, 40);
    const margin = TITLE * scale < 8 && box.clientWidth > 600 && foldedGroups.size < model.groups.length ? 84 : 0; // for the names of rows
    if (margin) scale = Math.min((w -= margin) / layout.width, h / layout.height);
    ox = 8 + margin + (w - layout.width * scale) / 2;
    oy = 8 + Math.max(0, (h - layout.height * scale) / 2);
    fitted = true;
    redraw();
  }
  function zoom(factor, x = box.clientWidth / 2, y = box.clientHeight / 2) {
    const next = Math.max(0.05, Math.min(160, scale * factor));
    ox = x - ((x - ox) * next) / scale;
    oy = y - ((y - oy) * next) / scale;
    scale = next;
    redraw();
  }
  /** Rectangle of a task in CSS pixels; of its operator's box when that is folded. */
  function rectOf(task) {
    const op = model.opOf(task), b = layout.boxes[op.index];
    if (!b.rows) return [ox + b.x * scale, oy + b.y * scale, b.w * scale, b.h * scale, true];
    const i = task - op.first;
    return [ox + (b.x + PAD + (i % across)) * scale, oy + (b.y + TITLE + PAD + Math.floor(i / across)) * scale, scale, scale, false];
  }
  /** What stands at a point: a task, an operator's title or a layer's title. O(log columns). */
  function at(px, py) {
    const x = (px - ox) / scale, y = (py - oy) / scale, width = across + 2 * PAD + BETWEEN;
    const k = Math.floor(x / width);
    if (k < 0 || k >= layout.perBand || x - k * width > across + 2 * PAD) return null;
    let lo = 0, hi = Math.ceil(layout.heads.length / layout.perBand);
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (layout.heads[mid * layout.perBand].y > y) hi = mid;
      else lo = mid + 1;
    }
    const g = (lo - 1) * layout.perBand + k, head = layout.heads[g];
    if (lo < 1 || !head || y > head.y + head.h) return null;
    if (y < head.y + HEAD || foldedGroups.has(g)) return { group: g };
    const ops = model.groups[g].ops;
    const o = upper(ops.map((op) => layout.boxes[op.index].y), y) - 1;
    if (o < 0) return null;
    const op = ops[o], b = layout.boxes[op.index];
    if (y > b.y + b.h) return null;
    const cx = Math.floor(x - b.x - PAD), cy = Math.floor(y - b.y - TITLE - PAD), i = cy * across + cx;
    if (b.rows && cy >= 0 && cx >= 0 && cx < across && i < op.count) return { op, group: g, task: op.first + i };
    return { op, group: g };
  }

  // ---- drawing
  function draw() {
    if (!box.clientWidth || !box.clientHeight) return;
    const started = performance.now();
    const now = readTheme(el);
    if (!theme || css(now.bg) !== css(theme.bg) || css(now.fg) !== css(theme.fg)) { theme = now; setMode(mode.name ?? (modes.includes(meta.color) ? meta.color : "kind")); }
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.round(box.clientWidth * ratio), height = Math.round(box.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.textBaseline = "middle";
    context.font = `11px ${theme.font}`;
    if (!model.n) {
      context.fillStyle = css(theme.bg);
      context.fillRect(0, 0, box.clientWidth, box.clientHeight);
      context.fillStyle = css(theme.fg);
      context.textAlign = "center";
      context.fillText(meta.empty, box.clientWidth / 2, box.clientHeight / 2, box.clientWidth - 20);
      frames.push(performance.now() - started);
      return;
    }
    if (!fitted) { fit(); }
    drawTiles(width, height, ratio);
    drawTitles();
    drawChosen();
    frames.push(performance.now() - started);
    if (frames.length > 400) frames.splice(0, 200);
  }

  const inView = (b) => {
    const x = ox + b.x * scale, y = oy + b.y * scale;
    return x < box.clientWidth && y < box.clientHeight && x + b.w * scale > 0 && y + b.h * scale > 0;
  };

  // Every pixel of a box asks which tile it belongs to: the cost is the pixels in view, however many tasks there are.
  function drawTiles(width, height, ratio) {
    if (!image || image.width !== width || image.height !== height) image = context.createImageData(width, height);
    const out = new Uint32Array(image.data.buffer), s = scale * ratio;
    const ground = pixel(theme.bg), panel = pixel(mix(theme.bg, theme.line, 0.28));
    out.fill(ground);
    const faint = matches ? matches.flags : selection.ids.size || path ? new Uint8Array(0) : null;
    const dimmed = faint ? Uint32Array.from(colours, (c) => pixel(mix(theme.bg, c, 0.32))) : null;
    const inks = alone < 0 ? words : Uint32Array.from(colours, (c, k) => pixel(k === alone ? c : mix(theme.bg, c, 0.16)));
    const gap = s >= 5 ? 1 : 0;
    const fill = (x0, y0, x1, y1, word) => {
      x0 = Math.max(0, x0); x1 = Math.min(width, x1); y0 = Math.max(0, y0); y1 = Math.min(height, y1);
      if (x1 > x0) for (let y = y0; y < y1; y++) out.fill(word, y * width + x0, y * width + x1);
    };
    for (const head of layout.heads) { // a folded layer: one bar, its tasks side by side
      if (!foldedGroups.has(head.group) || !inView(head)) continue;
      const ops = model.groups[head.group].ops, base = ops[0].first, size = ops.reduce((sum, op) => sum + op.count, 0);
      const x0 = Math.round(ox * ratio + head.x * s), x1 = Math.round(ox * ratio + (head.x + head.w) * s);
      const y0 = Math.round(oy * ratio + head.y * s), y1 = Math.round(oy * ratio + (head.y + head.h) * s);
      fill(x0, y0, x1, y1, panel);
      const [from, to] = y1 - y0 < 50 * ratio ? [0.66, 0.92] : [0.45, 0.65]; // a low box has its name above the bar, and no more
      const ya = Math.round(y0 + from * (y1 - y0)), yb = Math.round(y0 + to * (y1 - y0));
      for (let x = Math.max(0, x0); x < Math.min(width, x1); x++) {
        const task = base + Math.min(size - 1, Math.floor(((x - x0) * size) / Math.max(1, x1 - x0)));
        fill(x, ya, x + 1, yb, (dimmed && !faint[task] ? dimmed : inks)[classOf[task]]);
      }
    }
    for (const op of model.ops) {
      const b = layout.boxes[op.index];
      if (b.hidden || !inView(b)) continue;
      const x0 = Math.round(ox * ratio + b.x * s), y0 = Math.round(oy * ratio + b.y * s);
      const x1 = Math.round(ox * ratio + (b.x + b.w) * s), y1 = Math.round(oy * ratio + (b.y + b.h) * s);
      fill(x0, y0, x1, y1, panel);
      if (!op.count) continue;
      if (!b.rows) { // folded: a bar with the operator's tiles squeezed side by side
        const ya = Math.round(oy * ratio + (b.y + TITLE) * s), yb = y1 - Math.max(1, Math.round(0.4 * s)), wide = Math.max(1, x1 - x0);
        for (let x = Math.max(0, x0); x < Math.min(width, x1); x++) {
          const task = op.first + Math.min(op.count - 1, Math.floor(((x - x0) * op.count) / wide));
          fill(x, ya, x + 1, yb, (dimmed && !faint[task] ? dimmed : inks)[classOf[task]]);
        }
        continue;
      }
      const gx = ox * ratio + (b.x + PAD) * s, gy = oy * ratio + (b.y + TITLE + PAD) * s;
      for (let row = 0; row < b.rows; row++) {
        const ya = Math.max(0, Math.round(gy + row * s)), yb = Math.min(height, Math.max(Math.round(gy + (row + 1) * s) - gap, ya + (s < 1 ? 0 : 1)));
        if (yb <= ya) continue;
        const start = row * across, stop = Math.min(op.count, start + across);
        if (s >= 1) {
          for (let i = start; i < stop; i++) {
            const xa = Math.max(0, Math.round(gx + (i - start) * s)), xb = Math.min(width, Math.round(gx + (i - start + 1) * s) - gap);
            if (xb > xa) out.fill((dimmed && !faint[op.first + i] ? dimmed : inks)[classOf[op.first + i]], ya * width + xa, ya * width + xb);
          }
        } else {
          const last = Math.min(width, Math.round(gx + (stop - start) * s));
          for (let x = Math.max(0, Math.round(gx)); x < last; x++) {
            const task = op.first + Math.min(stop - 1, start + Math.floor((x + 0.5 - gx) / s));
            out[ya * width + x] = (dimmed && !faint[task] ? dimmed : inks)[classOf[task]];
          }
        }
        for (let y = ya + 1; y < yb; y++) {
          const xa = Math.max(0, Math.round(gx)), xb = Math.min(width, Math.round(gx + (stop - start) * s));
          if (xb > xa) out.copyWithin(y * width + xa, ya * width + xa, ya * width + xb);
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  function label(text, x, y, room, strong) {
    if (room < 18) return;
    const most = Math.floor(room / 6);
    context.fillStyle = css(strong ? theme.fg : theme.muted);
    context.fillText(clip(text, most), x, y, room);
  }

  function drawTitles() {
    context.textAlign = "left";
    for (const head of layout.heads) {
      if (!inView(head)) continue;
      const x = ox + head.x * scale, y = oy + head.y * scale, room = head.w * scale, group = model.groups[head.group];
      const isFolded = foldedGroups.has(head.group);
      if (isFolded) {
        const tasks = group.ops.reduce((sum, op) => sum + op.count, 0);
        if (head.h * scale >= 50) label(`${plural(group.ops.length, "operator")}, ${plural(tasks, "task")}`, x + 4, y + head.h * scale - 9, room - 6, false);
      }
      const room1 = room < 58 ? group.name.replace(/^layer /, "L") : group.name;
      if (HEAD * scale < 6 && !isFolded) continue;
      const tall = isFolded ? Math.min(18, 0.66 * head.h * scale) : Math.min(HEAD * scale, 20);
      if (tall < 6) continue;
      context.font = `${Math.max(8, Math.min(11, tall))}px ${theme.font}`;
      label((isFolded ? "▸ " : room < 26 ? "" : "▾ ") + room1, x + 1, y + tall - Math.min(8, tall / 2), room, true);
    }
    const high = TITLE * scale;
    drawRowNames(high);
    context.font = `${Math.max(8, Math.min(11, high - 1))}px ${theme.font}`;
    for (const op of model.ops) {
      const b = layout.boxes[op.index];
      if (b.hidden || !inView(b)) continue;
      if (high < 8) continue;
      label(shortOp(op), ox + (b.x + PAD) * scale, oy + b.y * scale + Math.min(high, 22) / 2 + 1, b.w * scale - 4, hover?.op === op);
    }
    context.font = `11px ${theme.font}`;
    if (scale >= 30) drawTileText();
  }
  // Too small for a title in every box: the first column's names stand once, beside the row, where there is a margin.
  function drawRowNames(high) {
    const head = layout.heads.find((h) => h.x === 0), room = ox + (head?.x ?? 0) * scale - 10;
    if (high >= 8 || room < 40) return;
    context.textAlign = "right";
    context.font = `10px ${theme.font}`;
    for (const first of layout.heads) {
      if (first.x !== 0 || foldedGroups.has(first.group)) continue;
      const next = model.groups[first.group].ops.length > 1 || first.group + 1 >= model.groups.length ? first.group : first.group + 1;
      if (layout.heads[next].y !== first.y) continue;
      for (const op of model.groups[next].ops) {
        const b = layout.boxes[op.index];
        if (!b.hidden) label(shortOp(op), ox - 6, oy + (b.y + b.h / 2 + 0.5) * scale, room, hover?.op === op);
      }
    }
    context.textAlign = "left";
  }
  const shortOp = (op) => {
    const name = op.layer >= 0 ? op.name.replace(/^.*?layers?[._]?\d+[._]/i, "") : op.name;
    return scale * across > 160 ? `${name} · ${op.count}` : name;
  };

  function drawTileText() {
    context.textAlign = "center";
    let budget = 1200;
    for (const op of model.ops) {
      const b = layout.boxes[op.index];
      if (!b.rows || !inView(b)) continue;
      for (let i = 0; i < op.count && budget; i++) {
        const [x, y, w, h] = rectOf(op.first + i);
        if (x > box.clientWidth || x + w < 0 || y > box.clientHeight || y + h < 0) continue;
        const [r, g, bl] = colours[classOf[op.first + i]];
        context.fillStyle = 0.299 * r + 0.587 * g + 0.114 * bl > 140 ? "#000" : "#fff";
        context.fillText(String(i), x + w / 2, y + h / 2);
        budget--;
      }
    }
  }

  const centre = (task, down) => {
    const [x, y, w, h, whole] = rectOf(task);
    return [x + w / 2, y + (down ? h - (whole ? 4 : 0) : 0)];
  };

  function arrow(x0, y0, x1, y1, style, dash, thick = 1.2) {
    context.strokeStyle = context.fillStyle = style;
    context.lineWidth = thick;
    context.setLineDash(dash);
    const bend = Math.max(14, Math.abs(y1 - y0) * 0.4);
    context.beginPath();
    context.moveTo(x0, y0);
    context.bezierCurveTo(x0, y0 + bend, x1, y1 - bend, x1, y1);
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x1 - 4, y1 - 7);
    context.lineTo(x1 + 4, y1 - 7);
    context.fill();
    context.lineWidth = 1;
  }

  /** Outline of tasks a … b-1 of one operator: at most three rectangles in its grid. */
  function outline(a, b, style, fillStyle) {
    const op = model.opOf(a), i = a - op.first, j = b - 1 - op.first;
    context.strokeStyle = style;
    const draw1 = (from, to) => {
      const [x, y] = rectOf(op.first + from), [x2, y2, w, h] = rectOf(op.first + to);
      if (fillStyle) { context.fillStyle = fillStyle; context.fillRect(x, y, x2 + w - x, y2 + h - y); }
      context.strokeRect(x - 0.5, y - 0.5, Math.max(2, x2 + w - x), Math.max(2, y2 + h - y));
    };
    if (!layout.boxes[op.index].rows) return draw1(i, i);
    const r0 = Math.floor(i / across), r1 = Math.floor(j / across);
    if (r0 === r1) return draw1(i, j);
    if (i % across === 0 && (j % across === across - 1 || j === op.count - 1)) {
      const full = Math.min(op.count, across), [x, y] = rectOf(a), [, y2, , h] = rectOf(op.first + j);
      if (fillStyle) { context.fillStyle = fillStyle; context.fillRect(x, y, full * scale, y2 + h - y); }
      context.strokeRect(x - 0.5, y - 0.5, full * scale, y2 + h - y);
      return undefined;
    }
    draw1(i, r0 * across + across - 1);
    if (r1 > r0 + 1) outline(op.first + (r0 + 1) * across, op.first + r1 * across, style, fillStyle);
    draw1(r1 * across, j);
    return undefined;
  }

  function diamond(x, y, style, text) {
    context.fillStyle = css(theme.bg);
    context.strokeStyle = style;
    context.beginPath();
    context.moveTo(x, y - 6); context.lineTo(x + 6, y); context.lineTo(x, y + 6); context.lineTo(x - 6, y);
    context.closePath();
    context.fill();
    context.stroke();
    if (text) {
      context.textAlign = "left";
      const room = context.measureText(text).width;
      context.fillStyle = css(theme.bg, 0.85);
      context.fillRect(x + 8, y - 7, room + 4, 14);
      context.fillStyle = css(theme.fg);
      context.fillText(text, x + 10, y + 1);
    }
  }

  /** Events that a task waits for: producer range and need, as lowering made them. */
  function eventsOf(task) {
    if (!columns.wait_first) return [];
    const found = [];
    for (let w = columns.wait_first[task]; w < columns.wait_first[task + 1]; w++) {
      const e = columns.wait_event[w], producer = columns.event_producer[e];
      if (producer < 0) continue;
      const base = model.ops[producer].first, a = base + columns.event_begin[e], b = a + columns.event_size[e];
      if (b > a) found.push({ event: e, need: columns.event_size[e], lag: columns.wait_lag[w], a, b });
    }
    return found;
  }

  function drawChosen() {
    const warm = theme.dark ? [255, 180, 90] : [196, 84, 0], cool = theme.accent, red = theme.dark ? [255, 110, 110] : [200, 20, 20];
    let budget = MOST_ARROWS;
    const ids = [...selection.ids].filter((id) => id >= 0 && id < model.n);
    if (matches) for (const task of matches.tasks.slice(0, 20000)) {
      if (scale < 4) break;
      const [x, y, w, h] = rectOf(task);
      if (x > box.clientWidth || y > box.clientHeight || x + w < 0 || y + h < 0) continue;
      context.strokeStyle = css(theme.fg);
      context.strokeRect(x, y, w - 1, h - 1);
    }
    if (ids.length && ids.length <= 40) {
      for (const task of ids) {
        const [x1, y1] = centre(task, false), events = eventsOf(task);
        for (const [ranges, tint] of [[near.before, warm], [near.after, cool]])
          for (const { set, a, b } of ranges) if (budget-- > 0) outline(a, b, css(tint), set.lag || set.kind !== "raw" ? null : css(tint, 0.35));
        const drawn = events.length ? events : predecessors(model, task).map(({ set, a, b }) => ({ a, b, lag: set.lag }));
        for (const { a, b, lag, event, need } of drawn) {
          if (budget-- <= 0) break;
          const [xa, ya] = middle(a, b, true);
          if (event === undefined) arrow(xa, ya, x1, y1, css(warm), lag ? [5, 4] : []);
          else {
            const dx = xa + (x1 - xa) * 0.12, dy = ya + 12;
            context.strokeStyle = css(warm);
            context.beginPath(); context.moveTo(xa, ya); context.lineTo(dx, dy); context.stroke();
            arrow(dx, dy + 6, x1, y1, css(warm), lag ? [5, 4] : []);
            diamond(dx, dy, css(warm), ids.length <= 3 ? `event ${event}, need ${need}${lag ? ", last iteration" : ""}` : "");
          }
        }
        const [x0, y0] = centre(task, true);
        const shown = new Map();
        for (const { set, a, b } of successors(model, task)) {
          const key = `${set.lag}:${a}:${b}`;
          if (!shown.has(key)) shown.set(key, { set, a, b });
        }
        for (const { set, a, b } of shown.values()) {
          if (budget-- <= 0) break;
          const [xb, yb] = middle(a, b, false);
          arrow(x0, y0, xb, yb, css(cool), set.lag ? [5, 4] : []);
        }
      }
    }
    context.lineWidth = 2;
    const step = Math.max(1, Math.floor(ids.length / 4000));
    for (let k = 0; k < ids.length; k += step) {
      const [x, y, w, h, whole] = rectOf(ids[k]);
      if (!whole) { context.fillStyle = css(colours[classOf[ids[k]]]); context.fillRect(x, y, Math.max(2, w - 1), Math.max(2, h - 1)); }
      context.strokeStyle = css(theme.fg);
      if (w > 4 || whole || ids.length < 200) context.strokeRect(x - 1, y - 1, Math.max(5, w + 1), Math.max(5, h + 1));
    }
    context.lineWidth = 1;
    if (path) {
      context.strokeStyle = css(red);
      context.lineWidth = 2;
      context.beginPath();
      path.tasks.forEach((task, k) => {
        const [x, y, w, h] = rectOf(task);
        if (k) context.lineTo(x + w / 2, y + h / 2);
        else context.moveTo(x + w / 2, y + h / 2);
      });
      context.stroke();
      context.lineWidth = 1;
      for (const task of path.tasks) outline(task, task + 1, css(red), scale < 3 ? null : css(red, 0.5));
    }
    for (const { before, after, text } of marks) {
      const known = [before, after].filter((task) => task >= 0 && task < model.n);
      if (!known.length) continue;
      for (const task of known) outline(task, task + 1, css(red), css(red, 0.6));
      const [x0, y0] = centre(known[0], true), [x1, y1] = centre(known[known.length - 1], false);
      if (known.length > 1) arrow(x0, y0, x1, y1, css(red), [3, 4], 2);
      context.textAlign = "center";
      const words1 = clip(text, Math.floor((box.clientWidth - 20) / 6)), room = context.measureText(words1).width;
      const mx = Math.max(room / 2 + 4, Math.min(box.clientWidth - room / 2 - 4, (x0 + x1) / 2)), my = (y0 + y1) / 2;
      context.fillStyle = css(theme.bg, 0.9);
      context.fillRect(mx - room / 2 - 4, my - 8, room + 8, 16);
      context.fillStyle = css(red);
      context.fillText(words1, mx, my);
    }
    if (cursor >= 0) {
      const [x, y, w, h] = rectOf(cursor);
      context.strokeStyle = css(theme.accent);
      context.lineWidth = 2.5;
      context.strokeRect(x - 2, y - 2, w + 3, h + 3);
      context.lineWidth = 1;
    }
  }
  function middle(a, b, down) {
    const [x0, y0] = centre(a, down), [x1, y1] = centre(b - 1, down);
    return [(x0 + x1) / 2, down ? Math.max(y0, y1) : Math.min(y0, y1)];
  }

  // ---- acting
  function foldAll(yes) {
    folded.clear();
    foldedGroups.clear();
    if (yes) for (const g of model.groups.keys()) foldedGroups.add(g);
    fit();
  }
  function toggle(place) {
    if (place.op && !foldedGroups.has(place.group)) {
      if (!folded.delete(place.op.index)) folded.add(place.op.index);
    } else if (!foldedGroups.delete(place.group)) foldedGroups.add(place.group);
    arrange(place);
    redraw();
  }
  function fold(place) {
    toggle(place);
    const what = place.op ? clip(place.op.name, 100) : model.groups[place.group].name;
    live.textContent = `${what} is ${(place.op ? folded.has(place.op.index) : foldedGroups.has(place.group)) ? "folded" : "unfolded"}.`;
  }
  function showTask(task) {
    const op = model.opOf(task);
    if (foldedGroups.has(op.group) || folded.has(op.index)) {
      foldedGroups.delete(op.group);
      folded.delete(op.index);
      arrange({ group: op.group });
    }
    const [x, y, w, h] = rectOf(task);
    if (x < 20 || y < 20 || x + w > box.clientWidth - 20 || y + h > box.clientHeight - 20) {
      ox += box.clientWidth / 2 - x - w / 2;
      oy += box.clientHeight / 2 - y - h / 2;
    }
    redraw();
  }

  function linesFor(task) {
    const op = model.opOf(task), i = task - op.first, tile = [0, 1, 2, 3].map((k) => columns["tile" + k][task]);
    const lines = [taskName(task), [`task ${task}`, meta.kinds[op.kind].name, op.layer >= 0 ? `layer ${op.layer}` : ""].filter(Boolean).join(" · "),
      `tile ${i} of ${op.count}: (${tile.join(", ")})`];
    meta.columns.forEach((c, k) => {
      const v = value(k, task);
      if (v < 0) return;
      lines.push(`${c.name} ${c.name.endsWith("_ns") ? exactNs(v) : formatCount(v)}`);
    });
    const before = new Map(); // by producer: two tensors of one operator are one reason to wait
    for (const { set, a, b } of predecessors(model, task)) if (set.kind === "raw" && !set.lag) before.set(set.producer, Math.max(b - a, before.get(set.producer) ?? 0));
    const told = [...before].map(([producer, n]) => `${n} of ${clip(model.ops[producer].name, 40)}`);
    if (told.length) lines.push(`after ${told.slice(0, 3).join(", ")}${told.length > 3 ? " …" : ""}`);
    return lines;
  }
  function linesForPlace(place) {
    if (place.task !== undefined) return linesFor(place.task);
    if (place.op) return [clip(place.op.name, 120), `${meta.kinds[place.op.kind].name} · ${plural(place.op.count, "task")}`, "click selects them, double-click folds"];
    const group = model.groups[place.group];
    return [group.name || "outside the layers", `${plural(group.ops.length, "operator")} · ${plural(group.ops.reduce((sum, op) => sum + op.count, 0), "task")}`, "double-click folds or unfolds"];
  }
  function tasksOf(place) {
    if (place.task !== undefined) return [place.task];
    const ops = place.op ? [place.op] : model.groups[place.group].ops;
    return ops.flatMap((op) => Array.from({ length: op.count }, (_, i) => op.first + i));
  }

  const on = (target, type, f, options = {}) => target.addEventListener(type, f, { signal, ...options });
  const point = (event) => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  on(canvas, "pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, ox, oy, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  on(canvas, "pointermove", (event) => {
    if (!layout) return;
    const [x, y] = point(event);
    if (drag) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (Math.hypot(dx, dy) > 3) drag.moved = true;
      if (drag.moved) { ox = drag.ox + dx; oy = drag.oy + dy; tip.hide(); redraw(); }
      return;
    }
    const before = hover?.op;
    hover = at(x, y);
    canvas.style.cursor = hover ? "pointer" : "grab";
    if (hover) tip.show(linesForPlace(hover), x, y);
    else tip.hide();
    if (before !== hover?.op) redraw();
  });
  on(canvas, "pointerup", (event) => {
    const was = drag;
    drag = null;
    if (!was || was.moved || event.detail > 1) return;
    const found = at(...point(event));
    if (!found) { cursor = -1; selection.set([], view); return; }
    const chosen = tasksOf(found);
    cursor = found.task ?? -1;
    selection.set(event.shiftKey ? new Set([...selection.ids, ...chosen]) : chosen, view);
    redraw();
  });
  on(canvas, "pointercancel", () => { drag = null; });
  on(canvas, "pointerleave", () => { hover = null; tip.hide(); redraw(); });
  on(canvas, "dblclick", (event) => {
    const found = at(...point(event));
    if (found && found.task === undefined) toggle(found);
    else if (found) zoom(Math.max(1, 44 / scale), ...point(event));
  });
  on(canvas, "wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 16 : 1) * 0.002), ...point(event));
  }, { passive: false });

  function walk(to) {
    if (to < 0 || to >= model.n) return;
    cursor = to;
    showTask(to);
    live.textContent = linesFor(to).join(", ");
  }
  function along(ranges) {
    const plain = ranges.filter(({ set }) => !set.lag && set.kind === "raw");
    if (plain.length) walk(plain[0].a);
    else live.textContent = `${taskName(cursor)} has no such neighbour in this iteration.`;
  }
  on(canvas, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !model.n) return;
    const begin = () => walk(selection.ids.size ? Math.min(...selection.ids) : 0);
    const keys = {
      ArrowRight: () => (cursor < 0 ? begin() : walk(cursor + 1)), ArrowLeft: () => (cursor < 0 ? begin() : walk(cursor - 1)),
      ArrowUp: () => (cursor < 0 ? begin() : along(predecessors(model, cursor))), ArrowDown: () => (cursor < 0 ? begin() : along(successors(model, cursor))),
      Enter: () => cursor >= 0 && selection.set(event.shiftKey ? [...selection.ids, cursor] : [cursor], view),
      Escape: () => { cursor = -1; selection.set([], view); live.textContent = "Left the selection."; redraw(); },
      f: () => cursor >= 0 && fold({ op: model.opOf(cursor), group: model.opOf(cursor).group }),
      F: () => cursor >= 0 && fold({ group: model.opOf(cursor).group }),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // ---- search
  let searched = "", index = -1;
  function find() {
    searched = query.value;
    const { tests, problems } = parseQuery(query.value, meta.columns.map((c) => c.name));
    if (problems.length) { matches = null; count.textContent = problems[0]; }
    else if (!tests.length) { matches = null; count.textContent = ""; }
    else {
      const tasks = search(model, meta, tests), flags = new Uint8Array(model.n);
      for (const task of tasks) flags[task] = 1;
      matches = { tasks, flags };
      count.textContent = `${tasks.length} found` + (tasks.length ? ", Enter selects" : "");
    }
    index = -1;
    redraw();
  }
  on(query, "input", find);
  on(query, "keydown", (event) => {
    if (event.key === "Escape") { query.value = ""; find(); }
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (searched !== query.value) find();
    if (!matches?.tasks.length) return;
    if (index < 0 && !event.shiftKey) { index = 0; selection.set(matches.tasks, null); showTask(matches.tasks[0]); return; }
    index = (index + (event.shiftKey ? matches.tasks.length - 1 : 1)) % matches.tasks.length;
    selection.set([matches.tasks[index]], null);
    count.textContent = `${index + 1} of ${matches.tasks.length}`;
  });

  // ---- selection
  function follow(ids, source) {
    near = { before: [], after: [] };
    const known = [...ids].filter((id) => id >= 0 && id < model.n);
    if (known.length && known.length <= 40) {
      const merge = (ranges, f) => { for (const { set, a, b } of f) if (!ranges.some((r) => r.a === a && r.b === b)) ranges.push({ set, a, b }); };
      for (const task of known) {
        merge(near.before, predecessors(model, task));
        merge(near.after, successors(model, task));
      }
    }
    if (known.length && source !== view && layout) showTask(known[0]);
    live.textContent = !known.length ? "" : known.length === 1 ? `Selected: ${linesFor(known[0]).join(", ")}.` : `Selected: ${known.length} tasks.`;
    if (table.open) fillTable();
    redraw();
  }
  selection.on(follow, signal);

  function fillTable() {
    if (!table.open) return;
    const body = make("tbody"), most = 200;
    let shown = 0;
    const line = (what, task, why) => {
      if (shown++ >= most) return;
      const op = model.opOf(task);
      const tr = make("tr", { tabindex: 0, "aria-selected": String(selection.ids.has(task)) },
        ...[what, task, clip(op.name, 80), task - op.first, why].map((cell, k) => make("td", { class: k === 0 || k === 2 || k === 4 ? "mpk-text" : "" }, String(cell))));
      tr.addEventListener("click", () => selection.set([task], null));
      tr.addEventListener("keydown", (event) => { if (event.key === "Enter") selection.set([task], null); });
      body.append(tr);
    };
    for (const task of [...selection.ids].slice(0, most)) line("selected", task, "");
    for (const [what, ranges] of [["before", near.before], ["after", near.after]])
      for (const { set, a, b } of ranges) for (let task = a; task < b && shown < most; task++) line(what, task, `${set.kind} ${clip(set.tensor, 60)}${set.lag ? ", last iteration" : ""}`);
    table.querySelector(".mpk-scroll").replaceChildren(shown ? make("table", {}, make("thead", {}, make("tr", {},
      ...["relation", "task", "operator", "tile", "why"].map((name, k) => make("th", { scope: "col", class: k === 0 || k === 2 || k === 4 ? "mpk-text" : "" }, name)))), body)
      : make("p", {}, "Nothing is selected."));
  }

  // ---- while something is going on
  /** Stages that have ended, iterations under way, and what went wrong, as task_dag.py tells of them. */
  function setState({ stages = [], iteration = 0, of = null, faults = [] } = {}) {
    const parts = stages.map(([name, seconds, text]) => make("span", { title: clip(text, 400) }, `✓ ${clip(name, 40)} ${Number(seconds.toPrecision(3))} s`));
    if (iteration || of) parts.push(make("span", {}, of ? `iteration ${iteration} of ${of}` : plural(iteration, "iteration")));
    if (of) parts.push(make("progress", { max: of, value: Math.min(of, iteration), "aria-label": "Iterations" }));
    for (const { text } of [...(meta.missing ?? []), ...faults]) parts.push(make("span", { class: "mpk-fault" }, `✗ ${clip(text, 400)}`));
    state.replaceChildren(...parts);
    state.hidden = !parts.length;
    const before = marks.length;
    marks = [...(meta.missing ?? []), ...faults];
    const fault = marks.at(-1);
    if (marks.length > before && layout && fault) for (const task of [fault.before, fault.after]) if (task >= 0 && task < model.n) showTask(task);
    redraw();
  }
  setState(meta.state);

  redraw();
  const view = {
    setState, model, selection, fit, zoom, frames, foldAll, find: (text) => { query.value = text; find(); return matches?.tasks ?? []; },
    setMode: (name) => { setMode(name); redraw(); }, showTask, rectOf, pan: (dx, dy) => { ox += dx; oy += dy; redraw(); },
    get layout() { return layout; }, get scale() { return scale; }, setScale: (s) => zoom(s / scale),
  };
  return view;
}
