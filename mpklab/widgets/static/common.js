// What every view shares: columns out of bytes, colours that follow the theme, one selection, small DOM helpers.

// ---- bytes -> columns -------------------------------------------------------------------------------------------

/** Inflate a container written by page.py: {meta, columns: {name: typed array}}. */
export async function openContainer(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return readContainer(new Uint8Array(await new Response(stream).arrayBuffer()));
}

export function readContainer(raw) {
  const size = new DataView(raw.buffer, raw.byteOffset, 4).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + size)));
  const columns = {};
  let at = 4 + size;
  for (const [name, count, planes, signed, delta, float] of header.columns) {
    const bytes = raw.subarray(at, at + count * planes);
    columns[name] = float ? decodeFloats(bytes, count) : decodeIntegers(bytes, count, planes, signed, delta);
    at += count * planes;
  }
  return { meta: header.meta, columns };
}

// Byte planes: all lowest bytes, then all second bytes ... Neighbours in one plane look alike, so deflate does well.
function decodeIntegers(bytes, count, planes, signed, delta) {
  if (planes <= 1 && !signed && !delta) return planes ? bytes.slice() : new Uint8Array(count);
  const wide = planes > 3; // 2^31 and more: doubles are exact up to 2^53
  const out = wide ? new Float64Array(count) : new Int32Array(count);
  for (let p = 0, unit = 1; p < planes; p++, unit *= 256) {
    const base = p * count;
    if (wide) for (let i = 0; i < count; i++) out[i] += bytes[base + i] * unit;
    else for (let i = 0; i < count; i++) out[i] |= bytes[base + i] << (8 * p);
  }
  if (signed) {
    if (wide) for (let i = 0; i < count; i++) out[i] = out[i] % 2 ? -(out[i] + 1) / 2 : out[i] / 2;
    else for (let i = 0; i < count; i++) out[i] = (out[i] >>> 1) ^ -(out[i] & 1);
  }
  if (delta) for (let i = 1; i < count; i++) out[i] += out[i - 1];
  return out;
}

function decodeFloats(bytes, count) {
  const out = new Uint8Array(count * 4);
  for (let p = 0; p < 4; p++) for (let i = 0; i < count; i++) out[4 * i + p] = bytes[p * count + i];
  return new Float32Array(out.buffer);
}

export function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

// ---- one selection of task ids ------------------------------------------------------------------------------------

/** Task ids that all views show; `source` tells a view that a change is its own. */
export class Selection {
  constructor() {
    this.ids = new Set();
    this.listeners = new Set();
  }
  on(listener, signal) {
    this.listeners.add(listener);
    signal?.addEventListener("abort", () => this.listeners.delete(listener));
  }
  set(ids, source = null) {
    const next = new Set(ids);
    if (next.size === this.ids.size && [...next].every((id) => this.ids.has(id))) return;
    this.ids = next;
    for (const listener of [...this.listeners]) listener(this.ids, source);
  }
}

// ---- DOM ----------------------------------------------------------------------------------------------------------

/** An element from a tag, properties and children; strings become text nodes, never markup. */
export function make(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") el.className = value;
    else if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else el.setAttribute(key, value === true ? "" : String(value));
  }
  el.append(...children);
  return el;
}

export function button(label, title, onclick) {
  // A word is its own name; a sign needs one.
  return make("button", { type: "button", title, "aria-label": /\w/.test(label) ? null : title, onclick }, label);
}

export function chooser(label, names, onchange) {
  const select = make("select", { "aria-label": label }, ...names.map((name) => make("option", { value: name }, clip(name, 60))));
  select.addEventListener("change", () => onchange(select.value));
  return make("label", {}, label + " ", select);
}

/** Sentences above a picture: what is missing, and why. */
export const notesOf = (meta) => (meta.notes ?? []).map((note) => make("p", { class: "mpk-note" }, clip(note, 2000)));

/** A colour and its name that can be pressed: then only what has that colour stands out, which is read without colours. */
export function legendEntry(colour, name, idle, pressed, onpress) {
  const swatch = make("i", { class: "mpk-swatch" + (idle ? " mpk-idle" : "") });
  swatch.style.background = colour;
  return make("button", { type: "button", class: "mpk-key", "aria-pressed": String(pressed), title: "Show only this", onclick: onpress }, swatch, clip(name, 60));
}

/** Lines in a floating box beside the pointer; text only. */
export class Tooltip {
  constructor(parent) {
    this.el = make("div", { class: "mpk-tip", role: "tooltip", hidden: true });
    parent.append(this.el);
    this.parent = parent;
  }
  show(lines, x, y) {
    this.el.replaceChildren(...lines.map((line, i) => make("div", { class: i ? "" : "mpk-tip-head" }, line)));
    this.el.hidden = false;
    const width = this.parent.clientWidth, box = this.el.getBoundingClientRect();
    this.el.style.left = Math.max(0, x + 14 + box.width > width ? x - box.width - 10 : x + 14) + "px";
    this.el.style.top = Math.max(0, y + 14 + box.height > this.parent.clientHeight ? y - box.height - 8 : y + 14) + "px";
  }
  hide() {
    this.el.hidden = true;
  }
}

/** Calls `redraw` at most once a frame, and again whenever size, visibility, theme or pixel ratio may have changed. */
export function keepDrawn(el, redraw, signal) {
  let pending = 0;
  const ask = () => {
    if (!pending) pending = requestAnimationFrame(() => { pending = 0; redraw(); });
  };
  const sizes = new ResizeObserver(ask);
  sizes.observe(el);
  const shown = new IntersectionObserver((entries) => { if (entries.some((e) => e.isIntersecting)) ask(); });
  shown.observe(el);
  const themes = new MutationObserver(ask);
  for (const root of [document.documentElement, document.body])
    themes.observe(root, { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light", "data-jp-theme-name"] });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", ask);
  const forced = matchMedia("(forced-colors: active)");
  forced.addEventListener("change", ask);
  signal?.addEventListener("abort", () => {
    sizes.disconnect();
    shown.disconnect();
    themes.disconnect();
    dark.removeEventListener("change", ask);
    forced.removeEventListener("change", ask);
    cancelAnimationFrame(pending);
  });
  return ask;
}

// ---- colours ------------------------------------------------------------------------------------------------------

const probe = { context: null, known: new Map() };

/** [r, g, b] of any CSS colour, as the browser itself understands it. */
export function rgb(colour) {
  let found = probe.known.get(colour);
  if (!found) {
    probe.context ??= Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const c = probe.context;
    c.fillStyle = "#888";
    c.fillStyle = colour;
    c.fillRect(0, 0, 1, 1);
    found = [...c.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    probe.known.set(colour, found);
  }
  return found;
}

export const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
export const css = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;
/** One pixel of ImageData as a little-endian 32-bit word. */
export const pixel = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** The colours in force where `el` stands; `dark` follows the background that is really there. */
export function readTheme(el) {
  const style = getComputedStyle(el);
  const colour = (name) => rgb(style.getPropertyValue(name).trim() || "#888");
  const bg = colour("--mpk-bg");
  const [r, g, b] = bg;
  return {
    bg, fg: colour("--mpk-fg"), muted: colour("--mpk-muted"), line: colour("--mpk-line"), accent: colour("--mpk-accent"),
    dark: 0.299 * r + 0.587 * g + 0.114 * b < 128,
    font: style.fontFamily || "sans-serif",
  };
}

/** Position in [0, 1] to colour: dark blue to yellow, even in lightness, readable without telling red from green. */
const RAMP = [[0, 34, 78], [33, 56, 110], [76, 85, 108], [108, 110, 114], [142, 137, 120], [178, 165, 112], [217, 196, 93], [254, 232, 56]];
export function ramp(t) {
  const at = Math.min(0.9999, Math.max(0, t)) * (RAMP.length - 1), i = Math.floor(at);
  return mix(RAMP[i], RAMP[i + 1], at - i);
}

// ---- numbers and search -------------------------------------------------------------------------------------------

export function formatNs(ns, digits = 4) {
  const size = Math.abs(ns);
  if (size < 1e3) return `${Math.round(ns)} ns`;
  const [unit, name] = size < 1e6 ? [1e3, "µs"] : size < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  return `${Number((ns / unit).toPrecision(digits))} ${name}`;
}

/** All the digits: nanoseconds with thousands separated. */
export const exactNs = (ns) => Math.round(ns).toLocaleString("en-US") + " ns";

export function formatCount(value) {
  const size = Math.abs(value);
  if (size < 1e4) return String(Number(value.toPrecision(4)));
  const [unit, name] = size < 1e6 ? [1e3, "k"] : size < 1e9 ? [1e6, "M"] : size < 1e12 ? [1e9, "G"] : [1e12, "T"];
  return `${Number((value / unit).toPrecision(3))}${name}`;
}

/** Round step so that `span` holds about `count` of them: 1, 2 or 5 times a power of ten. */
export function niceStep(span, count) {
  const raw = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const lead = raw / power;
  return Math.max(1, power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10));
}

/** First index in [lo, hi) where values[index] > key. */
export function upper(values, key, lo = 0, hi = values.length) {
  while (lo < hi) {
    const mid = (lo + hi) >>> 1;
    if (values[mid] > key) hi = mid;
    else lo = mid + 1;
  }
  return lo;
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export function clip(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

// ---- where a view lives -------------------------------------------------------------------------------------------

/** In a page: the container stands in a data block of the document. */
export async function startPage(mount) {
  const el = document.getElementById("mpk");
  try {
    const { meta, columns } = await openContainer(fromBase64(document.getElementById("mpk-data").textContent.trim()));
    const view = mount(el, meta, columns, { selection: new Selection(), signal: new AbortController().signal, page: true });
    window.mpk = view; // for tests and for the curious
  } catch (error) {
    el.replaceChildren(make("p", { role: "alert" }, `This page could not be drawn: ${error.message}`));
    throw error;
  }
}

/** In a notebook: an anywidget with traits `_data`, the container, `_selected`, int32, and `_state`, what is going on. */
export function startWidget(mount) {
  return {
    async render({ model, el, signal }) {
      const root = make("div", { class: "mpk" });
      el.append(root);
      const view = (trait) => {
        const bytes = model.get(trait);
        return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      };
      const { meta, columns } = await openContainer(view("_data"));
      if (signal?.aborted) return;
      const selection = new Selection();
      const follow = () => {
        const bytes = view("_selected");
        selection.set(new Int32Array(bytes.slice().buffer), model);
      };
      const stop = new AbortController();
      signal?.addEventListener("abort", () => stop.abort());
      const shown = mount(root, meta, columns, { selection, signal: stop.signal, page: false });
      follow();
      const tell = () => shown.setState?.(JSON.parse(model.get("_state") || "{}"));
      tell();
      model.on("change:_state", tell);
      stop.signal.addEventListener("abort", () => model.off("change:_state", tell));
      model.on("change:_selected", follow);
      stop.signal.addEventListener("abort", () => model.off("change:_selected", follow));
      // A custom message, not a trait: setting a trait to what it is already fires nothing.
      selection.on((ids, source) => {
        if (source !== model) model.send({ kind: "select", tasks: [...ids].slice(0, 100000) });
      }, stop.signal);
      return () => stop.abort();
    },
  };
}
