// Every span of every worker on one canvas: typed arrays in, pixels out; 10^6 spans at an interactive pace.
import { Selection, Tooltip, button, chooser, clip, css, exactNs, formatNs, keepDrawn, legendEntry, make, mix, niceStep, notesOf, pixel, ramp, readTheme, rgb, upper } from "./common.js";

const GUTTER = 84, AXIS = 22, LABELS = 15, CURVE = 28, MINIMAP = 30, SCROLLBAR = 10;
const LEVELS = 16, SHADES = LEVELS + 2; // a class's colours by coverage, then the one of a span's left edge
const LANE_SHARE = { compute: 3, loader: 1.4, scheduler: 1.2 };

// ---- the model: rows of non-overlapping spans, sorted by time -----------------------------------------------------

/** Spans from the columns that timeline.py writes. A row is one lane at one nesting depth, so its spans never overlap. */
export function readSpans(meta, columns) {
  const n = columns.dur.length;
  const begin = new Float64Array(n), end = new Float64Array(n);
  const { row_count: counts, gap, dur } = columns;
  const bands = [], rows = [];
  let at = 0;
  for (let r = 0; r < counts.length; r++) {
    const lo = at, hi = at + counts[r];
    for (let t = 0; at < hi; at++) {
      begin[at] = t + gap[at];
      t = end[at] = begin[at] + dur[at];
    }
    const group = columns.row_group[r], worker = columns.row_worker[r], role = meta.roles[columns.row_role[r]];
    let band = bands[bands.length - 1];
    if (!band || band.group !== group || band.worker !== worker) {
      band = { group, worker, sm: columns.row_sm[r], lanes: [] };
      bands.push(band);
    }
    let lane = band.lanes[band.lanes.length - 1];
    if (!lane || lane.role !== role) band.lanes.push((lane = { role, rows: [], band }));
    const error = columns.row_error?.[r] ?? meta.error_ns ?? 0; // of its times against other lanes'
    const row = { lo, hi, depth: columns.row_depth[r], lane, error, least: columns.row_least?.[r], walk: columns.row_walk?.[r] };
    lane.rows.push(row);
    rows.push(row);
  }
  const event = new Int32Array(n).fill(-1);
  if (columns.event?.length) {
    const carries = meta.event_phases;
    for (let i = 0, e = 0; i < n; i++) if (carries[columns.phase[i]]) event[i] = columns.event[e++] - 1;
  }
  const task = columns.task;
  let op = columns.span_op;
  if (!op) {
    op = new Int32Array(n);
    for (let i = 0; i < n; i++) op[i] = task[i] < 0 ? -1 : columns.task_op[task[i]];
  }
  const truncated = new Set(columns.truncated);
  return { n, begin, end, task, op, event, truncated, iteration: columns.iteration, phase: columns.phase, ready: columns.ready, bands, rows };
}

/** The error bar of a duration in a row, both of whose ends one clock stamped: as frames/accuracy.py has it. */
const errorOf = (row, ns) => row.least === undefined ? row.error : Math.min(Math.sqrt(row.least ** 2 + row.walk ** 2 * ns), row.error);

/** Index of the span of a row that holds time t, or the nearest one at most `slack` away; -1 if none. */
export function findSpan(spans, row, t, slack) {
  const i = upper(spans.begin, t, row.lo, row.hi) - 1;
  if (i >= row.lo && spans.end[i] >= t) return i;
  let best = -1, distance = slack;
  if (i >= row.lo && t - spans.end[i] <= distance) [best, distance] = [i, t - spans.end[i]];
  if (i + 1 < row.hi && spans.begin[i + 1] - t <= distance) best = i + 1;
  return best;
}

/** Mean number of spans open at once, exact over any interval: sorted ends with their running sums. */
export class Activity {
  constructor(begins, ends) {
    this.sides = [begins, ends].map((values) => {
      const sorted = Float64Array.from(values).sort(), sums = new Float64Array(sorted.length + 1);
      for (let i = 0; i < sorted.length; i++) sums[i + 1] = sums[i] + sorted[i];
      return [sorted, sums];
    });
  }
  total(t) {
    let sum = 0;
    for (const [side, [sorted, sums]] of this.sides.entries()) {
      const k = upper(sorted, t);
      sum += (side ? -1 : 1) * (k * t - sums[k]);
    }
    return sum;
  }
  mean(a, b) {
    return b > a ? (this.total(b) - this.total(a)) / (b - a) : 0;
  }
}

/**
 * One row of spans into two lines of pixels: `low` shows everything, `high` only work, so that waiting is told from work
 * by height as well as by colour. A pixel shared by several spans takes the class that fills most of it, faded by how
 * much of the pixel is covered: what is drawn is what holds most of that time, never whichever span came first.
 */
export function rasterise(spans, row, classes, t0, perNs, width, high, low, lut, idle) {
  const { begin, end } = spans;
  const last = t0 + width / perNs;
  let i = upper(end, t0, row.lo, row.hi);
  let at = -1, best = 0, bestSum = 0, covered = 0, current = -1, currentSum = 0;
  const sums = rasterise.sums, stamps = rasterise.stamps;
  stamps.fill(-1);
  const flush = () => {
    if (at < 0 || at >= width) return;
    const level = covered >= 1 ? LEVELS : Math.max(4, (covered * LEVELS + 0.5) | 0);
    const word = lut[best * SHADES + level];
    low[at] = word;
    if (!idle[best]) high[at] = word;
  };
  const add = (c, w) => {
    covered += w;
    let sum;
    if (c === current) sum = currentSum += w;
    else {
      if (current >= 0) { sums[current] = currentSum; stamps[current] = at; }
      sum = (stamps[c] === at ? sums[c] : 0) + w;
      current = c;
      currentSum = sum;
    }
    if (sum > bestSum) { best = c; bestSum = sum; }
  };
  const open = (p) => { at = p; best = bestSum = covered = currentSum = 0; current = -1; };
  for (; i < row.hi && begin[i] < last; i++) {
    let a = (begin[i] - t0) * perNs, b = (end[i] - t0) * perNs;
    if (a < 0) a = 0;
    if (b > width) b = width;
    const c = classes[i], p = a | 0, q = b | 0;
    if (p !== at) { flush(); open(p); }
    if (p === q) { add(c, b - a || 1e-6); continue; }
    add(c, p + 1 - a);
    flush();
    if (q > p + 1) {
      const word = lut[c * SHADES + LEVELS];
      low.fill(word, p + 1, q);
      if (!idle[c]) high.fill(word, p + 1, q);
      if (q > p + 4 && a > 0) {
        low[p + 1] = lut[c * SHADES + LEVELS + 1];
        if (!idle[c]) high[p + 1] = low[p + 1];
      }
    }
    open(q);
    if (b > q) add(c, b - q);
  }
  if (covered > 0) flush();
}
rasterise.sums = new Float64Array(256);
rasterise.stamps = new Int32Array(256);

// ---- colour modes -------------------------------------------------------------------------------------------------

/** Colour classes of one mode: names, whether they are idle time, and the class of every span. */
export function classify(mode, meta, spans, columns) {
  const classes = [], of = new Uint8Array(spans.n);
  const phaseClass = meta.phases.map((phase) => classes.push({ name: phase.name, colour: phase.colour, idle: phase.idle }) - 1);
  const work = meta.phases.map((phase) => phase.work);
  const perOp = (assign) => {
    const opClass = meta.ops.map(assign);
    for (let i = 0; i < spans.n; i++) {
      const p = spans.phase[i], o = spans.op[i];
      of[i] = work[p] && o >= 0 ? opClass[o] : phaseClass[p];
    }
  };
  if (mode === "phase") for (let i = 0; i < spans.n; i++) of[i] = phaseClass[spans.phase[i]];
  else if (mode === "kind") {
    const kindClass = meta.kinds.map((kind) => classes.push({ name: kind.name, colour: kind.colour, idle: false }) - 1);
    perOp((op) => kindClass[op.kind]);
  } else if (mode === "layer") {
    const layers = [...new Set(meta.ops.map((op) => op.layer))].sort((a, b) => a - b);
    const steps = Math.min(layers.length, 200);
    const known = new Map();
    perOp((op) => {
      if (op.layer < 0) {
        if (!known.has(-1)) known.set(-1, classes.push({ name: "no layer", colour: null, idle: false }) - 1);
        return known.get(-1);
      }
      const step = Math.floor((layers.indexOf(op.layer) * steps) / layers.length);
      if (!known.has(step)) known.set(step, classes.push({ name: `layer ${op.layer}`, ramp: steps > 1 ? step / (steps - 1) : 0.5, idle: false }) - 1);
      return known.get(step);
    });
  } else if (mode === "operator") {
    const known = new Map();
    perOp((op, o) => {
      const slot = o % 120;
      if (!known.has(slot)) known.set(slot, classes.push({ name: op.name, colour: slot, idle: false, many: meta.ops.length > 120 }) - 1);
      return known.get(slot);
    });
  } else {
    const extra = meta.modes.find((m) => m.name === mode);
    const base = extra.labels.map((name, k) => classes.push({ name, colour: extra.colours?.[k] ?? k, idle: extra.idle?.[k] ?? false }) - 1);
    const values = columns[extra.column];
    for (let i = 0; i < spans.n; i++) of[i] = values[i] ? base[values[i] - 1] : phaseClass[spans.phase[i]];
  }
  const used = new Uint8Array(classes.length);
  for (let i = 0; i < spans.n; i++) used[of[i]] = 1;
  return { classes, of, used };
}

// ---- the view -----------------------------------------------------------------------------------------------------

export function mountTimeline(el, meta, columns, host = {}) {
  const signal = host.signal, selection = host.selection ?? new Selection();
  const spans = readSpans(meta, columns);
  const span = Math.max(1, meta.end_ns);
  // Above the rows: ticks, a line of labels for iterations and one for bounds where there are any, one or two curves.
  // A second run has its own marks among its own rows, and their labels beside its name.
  const marksOf = (list, run) => list.filter((mark) => mark.run === run);
  const iterations = marksOf(meta.iterations, 0), bounds = marksOf(meta.bounds, 0);
  const iterationY = AXIS, boundY = AXIS + (iterations.length > 1 ? LABELS : 0), curveY = boundY + (bounds.length ? LABELS : 0);
  const rowsY = curveY + CURVE * (spans.ready ? 2 : 1) + 2;
  const groups = meta.groups;
  const bandTop = []; // in CSS pixels from the first row, filled by layout()

  // what is shown
  let t0 = 0, t1 = span, top = 0, bandHeight = 0, rowScale = 1, colour = { mode: null }, hover = null, cursor = null, drag = null, alone = -1;
  let theme = null, lut = null, idle = null, colours = null, image = null, activity = null, waiting = null, picked = new Map();
  const frames = [];

  // ---- elements
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": describe(), "aria-roledescription": "timeline" });
  const box = make("div", { class: "mpk-canvas" }, canvas);
  const tip = new Tooltip(box);
  const live = make("div", { class: "mpk-live", "aria-live": "polite", role: "status" });
  const legend = make("div", { class: "mpk-legend", "aria-label": "Colours" });
  const modes = ["kind", "phase", "layer", "operator", ...meta.modes.map((m) => m.name)];
  const mode = chooser("colour by", modes, (name) => { setMode(name); redraw(); });
  const bar = make("div", { class: "mpk-bar" },
    make(host.page ? "h1" : "h2", {}, meta.title), mode,
    button("+", "Zoom in", () => zoom(0.5)), button("−", "Zoom out", () => zoom(2)), button("Fit", "Show everything", fit),
    button("↕", "Taller rows", () => tall(1.5)), button("↧", "Flatter rows", () => tall(1 / 1.5)));
  if (iterations.length > 1) {
    bar.append(button("◀", "Previous iteration", () => step(-1)), button("▶", "Next iteration", () => step(1)));
  }
  bar.append(make("span", { class: "mpk-space" }), make("span", { class: "mpk-hint" }, "Ctrl + wheel zooms · drag pans · click selects a task"));
  const table = make("details", {}, make("summary", {}, "Table of the spans in view"), make("div", { class: "mpk-scroll" }));
  table.addEventListener("toggle", fillTable);
  el.append(bar, ...notesOf(meta), box, legend, live, table);
  box.style.height = (meta.height || Math.round(Math.min(600, Math.max(200, rowsY + MINIMAP + 16 + spans.bands.length * 34)))) + "px";
  const context = canvas.getContext("2d", { alpha: false });
  const redraw = keepDrawn(box, draw, signal);

  function describe() {
    return `Timeline of ${meta.title}: ${spans.n} spans of ${spans.bands.length} workers over ${formatNs(span)}. ` +
      "Arrow keys walk along spans and workers, Enter selects the task, Escape leaves, plus and minus zoom, 0 shows everything.";
  }

  function setMode(name) {
    alone = -1;
    colour = { mode: name, ...classify(name, meta, spans, columns) };
    mode.querySelector("select").value = name;
    theme = null;
  }

  function paint() {
    theme = readTheme(el);
    rebuild();
  }

  function rebuild() {
    const palette = meta.palette[theme.dark ? "dark" : "light"].map(rgb);
    colours = colour.classes.map((c) => c.ramp !== undefined ? ramp(theme.dark ? 0.15 + 0.85 * c.ramp : 0.92 * c.ramp)
      : c.colour === null || c.colour === undefined ? theme.muted : shade(palette, c.colour));
    lut = new Uint32Array(colours.length * SHADES);
    colours.forEach((c, k) => {
      const strength = alone >= 0 && alone !== k ? 0.16 : 1;
      for (let v = 0; v <= LEVELS; v++) lut[k * SHADES + v] = pixel(mix(theme.bg, c, (strength * v) / LEVELS));
      lut[k * SHADES + LEVELS + 1] = pixel(mix(theme.bg, c, 0.55 * strength));
    });
    idle = Uint8Array.from(colour.classes, (c) => (c.idle ? 1 : 0));
    drawLegend();
  }

  // More names than colours: go round again, lighter or darker, so that neighbours differ.
  function shade(palette, index) {
    if (Array.isArray(index)) return rgb(index[theme.dark ? 1 : 0]);
    const round = Math.floor(index / palette.length) % 4, base = palette[index % palette.length];
    return round ? mix(base, theme.dark ? [255, 255, 255] : [0, 0, 0], 0.18 * round) : base;
  }

  function drawLegend() {
    const shown = colour.classes.map((c, k) => [c, k]).filter(([, k]) => colour.used[k]);
    const few = shown.slice(0, 24);
    legend.replaceChildren(...few.map(([c, k]) => legendEntry(css(colours[k]), c.name, c.idle, alone === k, () => {
      alone = alone === k ? -1 : k;
      rebuild();
      redraw();
    })));
    if (shown.length > few.length) legend.append(make("span", {}, `and ${shown.length - few.length} more`));
    if (shown.some(([c]) => c.idle)) legend.append(make("span", {}, "· half height: not working"));
    for (const bound of meta.bounds) {
      const whose = bound.run ? clip(groups[meta.run_of_group.indexOf(bound.run)] ?? "", 40) + ": " : "";
      legend.append(make("span", {}, `┆ ${whose}${clip(bound.name, 60)} ${formatNs(bound.at)}`));
    }
  }

  // ---- geometry: CSS pixels
  function layout() {
    const width = box.clientWidth, height = box.clientHeight;
    const plot = { x: GUTTER, y: rowsY, w: Math.max(10, width - GUTTER - SCROLLBAR), h: Math.max(10, height - rowsY - MINIMAP) };
    const headers = groups.length > 1 ? groups.length * 16 : 0;
    const free = (plot.h - headers) / Math.max(1, spans.bands.length);
    const least = groups.length > 1 ? 1 : 2; // runs side by side are compared whole, however thin
    bandHeight = Math.max(least, Math.min(46, Math.max(least, free)) * rowScale);
    let y = 0, group = null;
    spans.bands.forEach((band, b) => {
      if (groups.length > 1 && band.group !== group) y += 16;
      group = band.group;
      bandTop[b] = y;
      y += bandHeight;
    });
    plot.total = y;
    top = Math.max(0, Math.min(top, y - plot.h));
    plot.perNs = plot.w / (t1 - t0);
    return plot;
  }

  /** Lanes of a band with their vertical extent; thin bands show the compute lane alone. */
  function lanesOf(band, height) {
    const inner = Math.max(1, height - (height >= 16 ? 3 : height >= 5 ? 1 : 0));
    const lanes = inner < 3 * band.lanes.length ? band.lanes.slice(0, 1) : band.lanes;
    const share = lanes.reduce((sum, lane) => sum + (LANE_SHARE[lane.role] ?? 1), 0);
    let y = 0;
    return lanes.map((lane, k) => {
      const h = k === lanes.length - 1 ? inner - y : Math.round((inner * (LANE_SHARE[lane.role] ?? 1)) / share);
      const placed = { lane, y, h: lanes.length > 1 && h > 3 && k < lanes.length - 1 ? h - 1 : h };
      y += h;
      return placed;
    });
  }

  const visible = (plot) => {
    let first = upper(bandTop, top - bandHeight), last = first;
    while (last < spans.bands.length && bandTop[last] - top < plot.h) last++;
    return [first, last];
  };

  // ---- drawing
  function draw() {
    if (!box.clientWidth || !box.clientHeight) return;
    const started = performance.now();
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const now = readTheme(el);
    if (!theme || css(now.bg) !== css(theme.bg) || css(now.fg) !== css(theme.fg)) paint();
    const width = Math.round(box.clientWidth * ratio), height = Math.round(box.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const plot = layout();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = css(theme.bg);
    context.fillRect(0, 0, box.clientWidth, box.clientHeight);
    context.font = `11px ${theme.font}`;
    context.textBaseline = "middle";
    if (!spans.n) {
      context.fillStyle = css(theme.fg);
      context.textAlign = "center";
      context.fillText(meta.empty, box.clientWidth / 2, box.clientHeight / 2, box.clientWidth - 20);
      frames.push(performance.now() - started);
      return;
    }
    drawRows(plot, ratio);
    drawSelected(plot);
    drawLabels(plot);
    drawGutter(plot);
    drawAxis(plot);
    drawCurve(plot);
    drawMinimap(plot);
    drawScrollbar(plot);
    frames.push(performance.now() - started);
    if (frames.length > 400) frames.splice(0, 200);
    if (!activity && frames.length === 1) setTimeout(computeActivity, 30); // after the first picture is on the screen
    if (table.open && !drag) scheduleTable();
  }

  function drawRows(plot, ratio) {
    const w = Math.round(plot.w * ratio), h = Math.round(plot.h * ratio);
    if (!image || image.width !== w || image.height !== h) image = context.createImageData(w, h);
    const words = new Uint32Array(image.data.buffer), blank = pixel(theme.bg);
    words.fill(blank);
    const high = new Uint32Array(w), low = new Uint32Array(w);
    const perNs = w / (t1 - t0);
    const [first, last] = visible(plot);
    for (let b = first; b < last; b++) {
      const y0 = Math.round((bandTop[b] - top) * ratio), y1 = Math.round((bandTop[b] - top + bandHeight) * ratio);
      for (const { lane, y, h: tall } of lanesOf(spans.bands[b], y1 - y0)) {
        high.fill(blank);
        low.fill(blank);
        for (const row of lane.rows) rasterise(spans, row, colour.of, t0, perNs, w, row.depth ? low : high, low, lut, idle);
        const cut = tall >= 4 ? Math.round(tall * 0.5) : tall; // rows above `cut` show work only
        const base = y0 + y;
        for (let r = 0; r < tall; r++) {
          const line = base + r;
          if (line >= 0 && line < h) words.set(r < cut && tall >= 4 ? high : low, line * w);
        }
      }
    }
    context.putImageData(image, Math.round(plot.x * ratio), Math.round(plot.y * ratio));
  }

  const clipRows = (plot, paintInside) => {
    context.save();
    context.beginPath();
    context.rect(plot.x, plot.y, plot.w, plot.h);
    context.clip();
    paintInside();
    context.restore();
  };
  const toX = (plot, t) => plot.x + (t - t0) * plot.perNs;

  /** Calls f(index, x, width, y, height) for each listed span in view. */
  function eachPlaced(plot, listOf, f) {
    const [first, last] = visible(plot);
    for (let b = first; b < last; b++) {
      for (const { lane, y, h } of lanesOf(spans.bands[b], bandHeight)) {
        for (const row of lane.rows) {
          const list = listOf(row);
          if (!list) continue;
          let k = 0;
          while (k < list.length && spans.end[list[k]] < t0) k++;
          for (; k < list.length && spans.begin[list[k]] < t1; k++) {
            const i = list[k], x = toX(plot, spans.begin[i]);
            const flat = idle[colour.of[i]] || row.depth;
            const high = flat && h >= 4 ? h / 2 : h;
            if (f(i, x, (spans.end[i] - spans.begin[i]) * plot.perNs, plot.y + bandTop[b] - top + y + h - high, high, row) === false) return;
          }
        }
      }
    }
  }

  function drawSelected(plot) {
    clipRows(plot, () => {
      if (picked.size) {
        context.fillStyle = css(theme.bg, 0.62);
        context.fillRect(plot.x, plot.y, plot.w, plot.h);
        let count = 0;
        context.strokeStyle = css(theme.fg);
        eachPlaced(plot, (row) => picked.get(row), (i, x, w, y, h) => {
          context.fillStyle = css(colours[colour.of[i]]);
          context.fillRect(x - (w < 3 ? 1 : 0), y, Math.max(3, w), h);
          if (w > 8 && h > 4) context.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
          else if (count < 200) context.strokeRect(x - 2.5, y - 2.5, Math.max(7, w + 5), h + 5); // a few pixels are not found without a frame
          return ++count < 20000;
        });
      }
      if (cursor) {
        eachPlaced(plot, (row) => (row === cursor.row ? [cursor.i] : null), (i, x, w, y, h) => {
          context.strokeStyle = css(theme.accent);
          context.lineWidth = 2;
          context.strokeRect(x - 1, y - 1, Math.max(4, w + 2), h + 2);
          context.lineWidth = 1;
        });
      }
      const shown = cursor ?? (hover?.i >= 0 ? hover : null), error = shown ? shown.row.error * plot.perNs : 0;
      if (error >= 1.5) eachPlaced(plot, (row) => (row === shown.row ? [shown.i] : null), (i, x, w, y, h) => errorBars(x, w, y + h / 2, error));
    });
  }
  /** How far a span's ends may really lie from where they are drawn. */
  function errorBars(x, w, y, error) {
    for (const [style, thick] of [[css(theme.bg), 3], [css(theme.fg), 1]]) {
      context.strokeStyle = style;
      context.lineWidth = thick;
      context.beginPath();
      for (const end of [x, x + w]) {
        context.moveTo(end - error, y);
        context.lineTo(end + error, y);
        for (const tip of [end - error, end + error]) { context.moveTo(tip, y - 4); context.lineTo(tip, y + 4); }
      }
      context.stroke();
    }
    context.lineWidth = 1;
  }

  function drawLabels(plot) {
    if (bandHeight < 14) return;
    clipRows(plot, () => {
      context.textAlign = "left";
      const [first, last] = visible(plot);
      let budget = 1500;
      for (let b = first; b < last && budget > 0; b++) {
        for (const { lane, y, h } of lanesOf(spans.bands[b], bandHeight)) {
          if (h < 10) continue;
          const row = lane.rows[0];
          let i = upper(spans.end, t0, row.lo, row.hi);
          const stop = upper(spans.begin, t1, row.lo, row.hi);
          if (stop - i > 400) continue;
          for (; i < stop; i++) {
            const left = Math.max(plot.x, toX(plot, spans.begin[i])), right = Math.min(plot.x + plot.w, toX(plot, spans.end[i]));
            const room = right - left - 6;
            if (room < 24 || (picked.size && !selection.ids.has(spans.task[i]))) continue;
            const [r, g, bl] = colours[colour.of[i]];
            context.fillStyle = 0.299 * r + 0.587 * g + 0.114 * bl > 140 ? "#000" : "#fff";
            const most = Math.floor(room / 6);
            const flat = idle[colour.of[i]];
            if (flat && h < 18) continue;
            context.fillText(clip(fitting(shortName(i), most), most), left + 3, plot.y + bandTop[b] - top + y + (flat ? 0.76 : lane.rows.length > 1 && h > 26 ? 0.28 : 0.5) * h);
            budget--;
          }
        }
      }
    });
  }

  /** Where a name is too long, its last part: `gate_up_proj` tells more than `layer0.gat…`. */
  const fitting = (name, most) => (name.length <= most ? name : name.slice(name.lastIndexOf(".", name.length - 2) + 1));
  const phaseName = (i) => meta.phases[spans.phase[i]].name;
  const opName = (i) => (spans.op[i] < 0 ? "" : meta.ops[spans.op[i]].name);
  const shortName = (i) => (meta.phases[spans.phase[i]].work && spans.op[i] >= 0 ? opName(i) : phaseName(i));

  function drawGutter(plot) {
    context.textAlign = "right";
    const [first, last] = visible(plot);
    const every = Math.max(1, Math.ceil(13 / bandHeight));
    let free = -Infinity;
    context.save();
    context.beginPath();
    context.rect(0, plot.y, plot.x + plot.w, plot.h);
    context.clip();
    for (let b = first; b < last; b++) {
      const band = spans.bands[b], y = plot.y + bandTop[b] - top;
      if (groups.length > 1 && (b === 0 || spans.bands[b - 1].group !== band.group)) {
        context.fillStyle = css(mix(theme.bg, theme.line, 0.6));
        context.fillRect(0, y - 16, plot.x + plot.w, 15);
        context.fillStyle = css(theme.fg);
        context.textAlign = "left";
        context.fillText(clip(groups[band.group], 80), 6, y - 8);
        context.textAlign = "right";
      }
      const middle = Math.max(y + Math.max(6.5, Math.min(bandHeight / 2, 20)), plot.y + 6);
      if (b % every || middle < free) continue;
      free = middle + 12;
      context.fillStyle = css(cursor?.row.lane.band === band || hover?.band === band ? theme.fg : theme.muted);
      const name = meta.worker_names?.[band.worker] ?? "", label = name.length > 18 ? "…" + name.slice(-17) : name;
      context.fillText(label || (band.sm >= 0 ? `w${band.worker} · ${meta.place} ${band.sm}` : `worker ${band.worker}`), plot.x - 6, middle, plot.x - 8);
    }
    context.restore();
  }

  function drawAxis(plot) {
    const tick = niceStep(t1 - t0, plot.w / 110);
    context.textAlign = "center";
    context.strokeStyle = css(theme.line, 0.7);
    context.beginPath();
    for (let t = Math.ceil(t0 / tick) * tick; t <= t1; t += tick) {
      const x = Math.round(toX(plot, t)) + 0.5;
      context.moveTo(x, AXIS - 5);
      context.lineTo(x, AXIS);
      if (x > plot.x + 24 && x < plot.x + plot.w - 24) {
        context.fillStyle = css(theme.muted);
        context.fillText(axisLabel(t, tick), x, 10);
      }
    }
    context.moveTo(plot.x, AXIS - 0.5);
    context.lineTo(plot.x + plot.w, AXIS - 0.5);
    context.stroke();
    clipLines(plot, () => {
      for (const { run, name, from, to } of runsIn(plot)) {
        const shown = marksOf(meta.iterations, run).filter((it) => it.begin <= t1 && it.end >= t0);
        if (shown.length < plot.w / 3) for (const it of shown) line(Math.round(toX(plot, it.begin)) + 0.5, run ? from : iterationY, to, css(theme.fg, 0.45), []);
        // The one under way at the left edge keeps its name there.
        const names = marksOf(meta.iterations, run).length > 1 ? shown.map((it) => [Math.max(toX(plot, it.begin), plot.x), `iteration ${it.index}`]) : [];
        const limits = marksOf(meta.bounds, run).map((bound) => [toX(plot, bound.at), `${clip(bound.name, 40)} ${formatNs(bound.at)}`]).filter(([x]) => x >= plot.x && x <= plot.x + plot.w);
        for (const [x] of limits) line(Math.round(x) + 0.5, run ? from : boundY, to, css(theme.accent), [5, 3]);
        if (!run) {
          tags(names, iterationY, plot);
          tags(limits, boundY, plot);
        } else if (from > plot.y + 16) tags([...names, ...limits], from - 16, plot, Math.max(plot.x, 14 + context.measureText(clip(name, 80)).width));
      }
      if (hover) line(Math.round(hover.x) + 0.5, AXIS, plot.y + plot.h, css(theme.fg, 0.5), [2, 2]);
    });
    context.textAlign = "right";
    context.fillStyle = css(theme.muted);
    context.fillText(hover ? formatNs(hover.t, 7) : `${formatNs(t1 - t0, 3)} shown`, plot.x - 6, 10, plot.x - 8);
  }

  /** The runs whose rows are in view: from where to where these reach, and the name above them. */
  function runsIn(plot) {
    const found = [], bottom = plot.y + plot.h;
    spans.bands.forEach((band, b) => {
      const run = meta.run_of_group[band.group], y = plot.y + bandTop[b] - top;
      if (found[run]) found[run].to = y + bandHeight;
      else found[run] = { run, name: groups[band.group], from: y, to: y + bandHeight };
    });
    const placed = found.filter(Boolean).map((one, _, all) => ({ ...one, from: Math.max(one.from, plot.y), to: all.length > 1 ? Math.min(one.to, bottom) : bottom }));
    return placed.filter(({ run, from, to }) => !run || from < to);
  }

  /** Texts beside their lines, right of them or left where the right has no room; what has room on neither side is left out. */
  function tags(entries, y, plot, free = plot.x) {
    context.textAlign = "left";
    const right = plot.x + plot.w, sorted = entries.sort((a, b) => a[0] - b[0]);
    sorted.forEach(([x, text], k) => {
      const room = context.measureText(text).width + 8, next = sorted[k + 1]?.[0] ?? right;
      const left = x + room <= Math.min(next, right) ? x : x - room >= free ? x - room : x + room <= right && x >= free ? x : null;
      if (left === null || left < free) return;
      context.fillStyle = css(theme.bg, 0.9);
      context.fillRect(left + 1, y, room - 1, LABELS);
      context.fillStyle = css(theme.fg);
      context.fillText(text, left + 4, y + LABELS / 2);
      free = left + room;
    });
  }

  const axisLabel = (t, tick) => {
    const [unit, name] = span < 1e3 ? [1, "ns"] : tick < 1e3 ? [1e3, "µs"] : tick < 1e6 ? (t1 < 1e6 ? [1e3, "µs"] : [1e6, "ms"]) : tick < 1e9 && t1 < 1e10 ? [1e6, "ms"] : [1e9, "s"];
    const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(tick / unit) + 1e-9)));
    return `${(t / unit).toFixed(digits)} ${name}`;
  };
  const clipLines = (plot, paintInside) => {
    context.save();
    context.beginPath();
    context.rect(plot.x, AXIS, plot.w, plot.y + plot.h - AXIS);
    context.clip();
    paintInside();
    context.restore();
  };
  function line(x, y0, y1, style, dash) {
    context.strokeStyle = style;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x, y0);
    context.lineTo(x, y1);
    context.stroke();
    context.setLineDash([]);
  }

  function computeActivity() {
    const work = meta.phases.map((p) => p.name === "execute"), begins = [], ends = [];
    for (const row of spans.rows) {
      if (row.lane.role !== "compute" || row.depth) continue;
      for (let i = row.lo; i < row.hi; i++) if (work[spans.phase[i]]) { begins.push(spans.begin[i]); ends.push(spans.end[i]); }
    }
    activity = new Activity(begins, ends);
    if (spans.ready) {
      const from = [], to = [];
      for (let i = 0; i < spans.n; i++) if (spans.ready[i] > 0) { from.push(spans.begin[i] - spans.ready[i]); to.push(spans.begin[i]); }
      waiting = new Activity(from, to);
    }
    redraw();
  }

  function area(of, x, y, w, h, a, b, most, style) {
    context.fillStyle = style;
    context.beginPath();
    context.moveTo(x, y + h);
    let before = of.total(a);
    for (let p = 0; p < w; p++) {
      const t = a + ((p + 1) * (b - a)) / w, now = of.total(t);
      const v = Math.max(0, (now - before) / ((b - a) / w) / most);
      context.lineTo(x + p, y + h - v * h);
      context.lineTo(x + p + 1, y + h - v * h);
      before = now;
    }
    context.lineTo(x + w, y + h);
    context.fill();
  }

  function drawCurve(plot) {
    const w = Math.floor(plot.w), h = CURVE - 4, workers = spans.bands.length;
    const curve = (of, y, name, most, style) => {
      const at = hover && of ? of.mean(hover.t - 0.5 / plot.perNs, hover.t + 0.5 / plot.perNs).toFixed(1) : "";
      context.textAlign = "right";
      context.fillStyle = css(theme.muted);
      context.fillText(name, plot.x - 6, y + 7, plot.x - 8);
      context.fillText(of ? `${at ? at + " " : ""}of ${most}` : "", plot.x - 6, y + 19, plot.x - 8);
      if (of) area(of, plot.x, y, w, h, t0, t1, most, style);
    };
    curve(activity, curveY + 2, "executing", workers, css(theme.accent, 0.4));
    if (spans.ready) curve(waiting, curveY + CURVE + 2, "ready", waiting ? mostWaiting(plot) : 0, css(theme.muted, 0.6));
  }
  /** The highest point of the lower curve in this window, rounded up to a number that reads well. */
  function mostWaiting(plot) {
    let most = 1, before = waiting.total(t0);
    const steps = Math.floor(plot.w);
    for (let p = 1; p <= steps; p++) {
      const now = waiting.total(t0 + (p * (t1 - t0)) / steps);
      most = Math.max(most, ((now - before) * steps) / (t1 - t0));
      before = now;
    }
    const step = niceStep(most, 4);
    return Math.ceil(most / step) * step;
  }

  function drawMinimap(plot) {
    const y = plot.y + plot.h + 6, h = MINIMAP - 8;
    context.fillStyle = css(mix(theme.bg, theme.line, 0.35));
    context.fillRect(plot.x, y, plot.w, h);
    if (activity) area(activity, plot.x, y, Math.floor(plot.w), h, 0, span, spans.bands.length, css(theme.muted, 0.55));
    const a = plot.x + (t0 / span) * plot.w, b = plot.x + (t1 / span) * plot.w;
    context.strokeStyle = css(theme.accent);
    context.lineWidth = 2;
    context.strokeRect(a + 1, y, Math.max(3, b - a - 2), h);
    context.lineWidth = 1;
    context.textAlign = "right";
    context.fillStyle = css(theme.muted);
    context.fillText(`all ${formatNs(span, 3)}`, plot.x - 6, y + h / 2, plot.x - 8);
  }

  function drawScrollbar(plot) {
    if (plot.total <= plot.h + 1) return;
    const x = plot.x + plot.w + 2, h = Math.max(18, (plot.h * plot.h) / plot.total);
    context.fillStyle = css(mix(theme.bg, theme.line, 0.4));
    context.fillRect(x, plot.y, SCROLLBAR - 3, plot.h);
    context.fillStyle = css(theme.muted);
    context.fillRect(x, plot.y + ((plot.h - h) * top) / (plot.total - plot.h), SCROLLBAR - 3, h);
  }

  // ---- moving
  function show(a, b) {
    const least = Math.min(span, 20);
    const size = Math.min(Math.max(b - a, least), span * 1.1);
    const middle = (a + b) / 2;
    a = Math.max(-0.05 * span, Math.min(middle - size / 2, 1.05 * span - size));
    [t0, t1] = [a, a + size];
    redraw();
  }
  function zoom(factor, at = (t0 + t1) / 2) {
    show(at - (at - t0) * factor, at + (t1 - at) * factor);
  }
  function fit() {
    top = 0;
    rowScale = 1;
    show(0, span);
  }
  function tall(factor) {
    rowScale = Math.max(0.25, Math.min(16, rowScale * factor));
    redraw();
  }
  function step(by) {
    const its = iterations, middle = (t0 + t1) / 2;
    let k = its.findIndex((it) => middle < it.end);
    if (k < 0) k = its.length - 1;
    const alone = t1 - t0 < 1.5 * (its[k].end - its[k].begin);
    k = Math.max(0, Math.min(its.length - 1, alone ? k + by : by > 0 ? 0 : its.length - 1));
    const pad = 0.02 * (its[k].end - its[k].begin);
    show(its[k].begin - pad, its[k].end + pad);
  }

  // ---- pointing
  function locate(event) {
    const r = canvas.getBoundingClientRect(), plot = layout();
    const x = event.clientX - r.left, y = event.clientY - r.top;
    const place = { x, y, t: t0 + (x - plot.x) / plot.perNs, plot };
    place.inRows = x >= plot.x && x <= plot.x + plot.w && y >= plot.y && y < plot.y + plot.h;
    place.inMap = y >= plot.y + plot.h && x >= plot.x;
    place.inBar = x > plot.x + plot.w && y >= plot.y && y < plot.y + plot.h;
    return place;
  }
  function pick(place) {
    if (!place.inRows) return null;
    const y = place.y - place.plot.y + top, b = upper(bandTop, y) - 1;
    if (b < 0 || y > bandTop[b] + bandHeight) return null;
    const lanes = lanesOf(spans.bands[b], bandHeight);
    const { lane } = lanes.findLast((placed) => y - bandTop[b] >= placed.y) ?? lanes[0];
    for (const row of [...lane.rows].reverse()) {
      const i = findSpan(spans, row, place.t, row.depth ? 0 : 3 / place.plot.perNs);
      if (i >= 0) return { i, row };
    }
    return { i: -1, row: lane.rows[0] };
  }
  function linesFor({ i, row }) {
    const band = row.lane.band, who = `${groups.length > 1 ? groups[band.group] + " · " : ""}worker ${band.worker}${meta.worker_names?.[band.worker] ? ` (${clip(meta.worker_names[band.worker], 80)})` : ""}${band.sm >= 0 ? ` · ${meta.place} ${band.sm}` : ""} · ${row.lane.role} lane`;
    if (i < 0) return ["nothing recorded", who];
    const bar = (error) => error ? ` ± ${exactNs(Math.max(1, error))}` : "", took = spans.end[i] - spans.begin[i];
    const lines = [`${phaseName(i)}${opName(i) ? " · " + clip(opName(i), 120) : ""}`];
    const op = spans.op[i] >= 0 ? meta.ops[spans.op[i]] : null;
    const ids = [];
    if (spans.task[i] >= 0) ids.push(`task ${spans.task[i]}`);
    if (op) ids.push(meta.kinds[op.kind].name);
    if (op && op.layer >= 0) ids.push(`layer ${op.layer}`);
    if (spans.event[i] >= 0) ids.push(`event ${spans.event[i]}`);
    if (spans.iteration[i] >= 0) ids.push(`iteration ${spans.iteration[i]}`);
    if (ids.length) lines.push(ids.join(" · "));
    if (spans.ready?.[i]) lines.push(`was ready ${exactNs(spans.ready[i])} before it began`);
    if (colour.mode && !["kind", "phase", "layer", "operator"].includes(colour.mode)) lines.push(`${colour.mode}: ${colour.classes[colour.of[i]].name}`);
    lines.push(`took ${exactNs(took)}${bar(errorOf(row, took))}`, `from ${exactNs(spans.begin[i])} to ${exactNs(spans.end[i])}${bar(row.error)}`, who);
    if (spans.truncated.has(i)) lines.push("cut short: its end was not recorded");
    return lines;
  }

  function choose(i, source, extend = false) {
    const task = i >= 0 ? spans.task[i] : -1;
    if (task < 0) { if (!extend) selection.set([], source); }
    else if (extend) selection.set(selection.ids.has(task) ? [...selection.ids].filter((id) => id !== task) : [...selection.ids, task], source);
    else selection.set([task], source);
  }

  const on = (target, type, f, options = {}) => target.addEventListener(type, f, { signal, ...options });
  on(canvas, "pointerdown", (event) => {
    const place = locate(event);
    drag = { x: event.clientX, y: event.clientY, t0, t1, top, moved: false, place };
    canvas.setPointerCapture(event.pointerId);
    if (place.inMap) moveMap(place);
  });
  function moveMap(place) {
    const t = ((place.x - place.plot.x) / place.plot.w) * span, half = (t1 - t0) / 2;
    show(t - half, t + half);
  }
  on(canvas, "pointermove", (event) => {
    const place = locate(event);
    if (drag) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (Math.hypot(dx, dy) > 3) drag.moved = true;
      if (drag.place.inMap) moveMap(place);
      else if (drag.moved && drag.place.inBar) {
        top = drag.top + (dy * place.plot.total) / place.plot.h;
        redraw();
      } else if (drag.moved) {
        const shift = dx / place.plot.perNs;
        top = drag.top - dy;
        show(drag.t0 - shift, drag.t1 - shift);
      }
      tip.hide();
      return;
    }
    const found = pick(place);
    hover = found ? { x: place.x, t: place.t, band: found.row.lane.band, ...found } : null;
    if (found) tip.show(linesFor(found), place.x, place.y);
    else tip.hide();
    canvas.style.cursor = found && found.i >= 0 && spans.task[found.i] >= 0 ? "pointer" : place.inMap ? "ew-resize" : "default";
    redraw();
  });
  on(canvas, "pointerup", (event) => {
    const was = drag;
    drag = null;
    if (!was || was.moved || was.place.inMap || was.place.inBar) return redraw();
    const found = pick(locate(event));
    if (found && found.i >= 0) setCursor(found, false);
    choose(found ? found.i : -1, view, event.shiftKey);
  });
  on(canvas, "pointercancel", () => { drag = null; });
  on(canvas, "pointerleave", () => { hover = null; tip.hide(); redraw(); });
  on(canvas, "dblclick", (event) => {
    const found = pick(locate(event));
    if (found && found.i >= 0) reveal(found.i, 0.4);
  });
  on(canvas, "wheel", (event) => {
    const place = locate(event);
    const unit = event.deltaMode === 1 ? 16 : 1;
    if (event.altKey && (event.ctrlKey || event.metaKey)) { event.preventDefault(); tall(Math.exp(-event.deltaY * unit * 0.002)); }
    else if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(Math.exp(event.deltaY * unit * 0.002), Math.max(t0, Math.min(t1, place.t))); }
    else if (event.shiftKey) {
      event.preventDefault();
      const shift = ((event.deltaX || event.deltaY) * unit) / place.plot.perNs;
      show(t0 + shift, t1 + shift);
    } else if (event.altKey) { event.preventDefault(); top += event.deltaY * unit; redraw(); }
  }, { passive: false });

  // ---- keyboard
  function setCursor(found, follow = true) {
    cursor = found;
    if (found && follow) {
      live.textContent = linesFor(found).join(", ");
      const { i } = found, size = t1 - t0;
      if (spans.begin[i] < t0 || spans.end[i] > t1) {
        const middle = (spans.begin[i] + spans.end[i]) / 2, wide = Math.max(size, 1.2 * (spans.end[i] - spans.begin[i]));
        show(middle - wide / 2, middle + wide / 2);
      }
      const plot = layout(), y = bandTop[spans.bands.indexOf(found.row.lane.band)];
      if (y < top) top = y;
      else if (y + bandHeight > top + plot.h) top = y + bandHeight - plot.h;
    }
    redraw();
  }
  function firstInView() {
    const [first] = visible(layout());
    const row = spans.bands[first].lanes[0].rows[0];
    const i = Math.min(row.hi - 1, upper(spans.end, t0, row.lo, row.hi));
    return { i, row };
  }
  function nextRow(by) {
    const main = spans.rows.filter((row) => !row.depth && row.hi > row.lo), k = main.indexOf(cursor.row);
    const row = main[Math.max(0, Math.min(main.length - 1, k + by))];
    const t = (spans.begin[cursor.i] + spans.end[cursor.i]) / 2;
    return { row, i: Math.min(row.hi - 1, upper(spans.end, t, row.lo, row.hi)) };
  }
  on(canvas, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !spans.n) return;
    const pan = (t1 - t0) / 4;
    const keys = {
      ArrowRight: () => setCursor(cursor ? { row: cursor.row, i: Math.min(cursor.row.hi - 1, cursor.i + 1) } : firstInView()),
      ArrowLeft: () => setCursor(cursor ? { row: cursor.row, i: Math.max(cursor.row.lo, cursor.i - 1) } : firstInView()),
      ArrowDown: () => setCursor(cursor ? nextRow(1) : firstInView()),
      ArrowUp: () => setCursor(cursor ? nextRow(-1) : firstInView()),
      Enter: () => cursor && choose(cursor.i, view, event.shiftKey),
      Escape: () => { selection.set([], view); setCursor(null); live.textContent = "Left the selection."; },
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: fit,
      PageDown: () => show(t0 + pan, t1 + pan), PageUp: () => show(t0 - pan, t1 - pan),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // ---- selection
  /** Bring a span into view; it fills `share` of the width unless it is seen already. */
  function reveal(i, share) {
    const size = (spans.end[i] - spans.begin[i]) / share, middle = (spans.begin[i] + spans.end[i]) / 2;
    show(middle - size / 2, middle + size / 2);
  }
  function follow(ids, source) {
    picked = new Map();
    let firstPicked = -1, count = 0, total = 0;
    if (ids.size) {
      const most = Math.max(...[...ids].slice(0, 100000));
      const flags = new Uint8Array(most + 1);
      for (const id of ids) if (id >= 0 && id <= most) flags[id] = 1;
      for (const row of spans.rows) {
        const list = [];
        for (let i = row.lo; i < row.hi; i++) if (spans.task[i] >= 0 && flags[spans.task[i]]) list.push(i);
        if (!list.length) continue;
        picked.set(row, list);
        count += list.length;
        for (const i of list) {
          if (meta.phases[spans.phase[i]].name === "execute") total += spans.end[i] - spans.begin[i];
          if (firstPicked < 0 || spans.begin[i] < spans.begin[firstPicked]) firstPicked = i;
        }
      }
    }
    if (source !== view && firstPicked >= 0) {
      let seen = false;
      for (const list of picked.values()) for (const i of list) if (spans.end[i] > t0 && spans.begin[i] < t1) seen = true;
      if (!seen) {
        const middle = (spans.begin[firstPicked] + spans.end[firstPicked]) / 2, half = (t1 - t0) / 2;
        show(middle - half, middle + half);
      }
    }
    live.textContent = !ids.size ? "" : ids.size === 1 && count
      ? `Selected: ${[clip(opName(firstPicked), 120), linesFor({ i: firstPicked, row: rowOf(firstPicked) })[1]].filter(Boolean).join(", ")}; ${count} spans, ${formatNs(total)} executing.`
      : `Selected: ${ids.size} tasks, ${count} spans here, ${formatNs(total)} executing.`;
    redraw();
  }
  const rowOf = (i) => spans.rows[upper(spans.rows.map((row) => row.lo), i) - 1];
  selection.on(follow, signal);

  // ---- the table beside the canvas
  let tableTimer = 0;
  function scheduleTable() {
    clearTimeout(tableTimer);
    tableTimer = setTimeout(fillTable, 200);
  }
  function fillTable() {
    if (!table.open) return;
    const most = 200, body = make("tbody");
    const [first, last] = visible(layout());
    let shown = 0, all = 0;
    for (let b = first; b < last; b++) {
      for (const lane of spans.bands[b].lanes) {
        for (const row of lane.rows) {
          const lo = upper(spans.end, t0, row.lo, row.hi), hi = upper(spans.begin, t1, row.lo, row.hi);
          all += Math.max(0, hi - lo);
          for (let i = lo; i < hi && shown < most; i++, shown++) {
            const cells = [spans.bands[b].worker, lane.role, phaseName(i), clip(opName(i), 80), spans.task[i] < 0 ? "" : spans.task[i], exactNs(spans.begin[i]), exactNs(spans.end[i] - spans.begin[i])];
            const tr = make("tr", { tabindex: 0, "aria-selected": String(selection.ids.has(spans.task[i])) },
              ...cells.map((cell, k) => make("td", { class: k > 0 && k < 4 ? "mpk-text" : "" }, String(cell))));
            tr.addEventListener("click", () => choose(i, null));
            tr.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(i, null); });
            body.append(tr);
          }
        }
      }
    }
    const head = ["worker", "lane", "phase", "operator", "task", "begin", "took"];
    table.querySelector("summary").textContent = `Table of the spans in view (${Math.min(shown, all)} of ${all})`;
    table.querySelector(".mpk-scroll").replaceChildren(make("table", {},
      make("thead", {}, make("tr", {}, ...head.map((name, k) => make("th", { class: k > 0 && k < 4 ? "mpk-text" : "", scope: "col" }, name)))), body));
  }

  setMode(modes.includes(meta.color) ? meta.color : "kind");
  paint();
  redraw();

  const view = {
    selection, spans, show, zoom, fit, tall, reveal, setMode: (name) => { setMode(name); redraw(); }, draw, frames,
    get window() { return [t0, t1]; },
    /** Canvas position of a span, for tests. */
    at(i) {
      let found = null;
      eachPlaced(layout(), (row) => (i >= row.lo && i < row.hi ? [i] : null), (_, x, w, y, h) => { found = [x + w / 2, y + h / 2]; });
      return found;
    },
  };
  return view;
}
