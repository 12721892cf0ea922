// The modules' logic without a page: decoding, search in sorted spans, rasterising, neighbours, layout, search language.
import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";

import { Selection, formatCount, formatNs, niceStep, openContainer, upper } from "../../mpklab/widgets/static/common.js";
import { parseQuery, place, predecessors, readTasks, search, successors } from "../../mpklab/widgets/static/dag.js";
import { boxOfOperator } from "../../mpklab/widgets/static/opgraph.js";
import { marksOfFile, operatorsAt } from "../../mpklab/widgets/static/source.js";
import { columnsOf } from "../../mpklab/widgets/static/studio.js";
import { ordered, tableColumns } from "../../mpklab/widgets/static/table.js";
import { Activity, classify, findSpan, rasterise, readSpans } from "../../mpklab/widgets/static/timeline.js";

const container = (columns, meta = {}) => {
  const described = [], bytes = [];
  for (const [name, planes, signed, delta, float, data] of columns) {
    described.push([name, planes ? data.length / planes : 0, planes, signed, delta, float]);
    bytes.push(Buffer.from(data));
  }
  const header = Buffer.from(JSON.stringify({ meta, columns: described }));
  const size = Buffer.alloc(4);
  size.writeUInt32LE(header.length);
  return deflateSync(Buffer.concat([size, header, ...bytes]));
};

test("a container opens", async () => {
  const { meta, columns } = await openContainer(container([
    ["plain", 1, 0, 0, 0, [7, 200]], ["signed", 2, 1, 0, 0, [3, 0, 0, 1]], ["delta", 1, 1, 1, 0, [20, 1, 4]],
    ["wide", 5, 0, 0, 0, [1, 0, 0, 0, 2]], ["float", 4, 0, 0, 1, [0, 0, 0xc0, 0x3f]],
  ], { a: "<" }));
  assert.equal(meta.a, "<");
  assert.deepEqual([...columns.plain], [7, 200]);
  assert.deepEqual([...columns.signed], [-2, 128]);
  assert.deepEqual([...columns.delta], [10, 9, 11]);
  assert.deepEqual([...columns.wide], [1 + 2 * 2 ** 32]);
  assert.deepEqual([...columns.float], [1.5]);
});

test("a selection tells of changes only", () => {
  const selection = new Selection(), heard = [];
  selection.on((ids, source) => heard.push([[...ids], source]));
  selection.set([1, 2], "a");
  selection.set([2, 1], "b");
  selection.set([]);
  assert.deepEqual(heard, [[[1, 2], "a"], [[], null]]);
});

test("numbers read well", () => {
  assert.equal(formatNs(950), "950 ns");
  assert.equal(formatNs(12_345), "12.35 µs");
  assert.equal(formatNs(2.5e9), "2.5 s");
  assert.equal(formatCount(12_600_000), "12.6M");
  assert.equal(niceStep(1000, 10), 100);
  assert.equal(niceStep(3, 10), 1);
  assert.equal(upper([1, 2, 2, 3], 2), 3);
});

const meta = {
  roles: ["compute", "loader"], groups: [""], modes: [], iterations: [], event_phases: [0, 1],
  phases: [{ name: "execute", colour: 0, idle: false, work: true }, { name: "wait", colour: 1, idle: true, work: false }],
  ops: [{ name: "a", kind: 0, layer: 0 }, { name: "b", kind: 1, layer: -1 }], kinds: [{ name: "linear", colour: 0 }, { name: "add", colour: 1 }],
};
const someSpans = () => readSpans(meta, {
  row_group: [0, 0], row_worker: [0, 1], row_role: [0, 0], row_sm: [3, -1], row_depth: [0, 0], row_count: [3, 1],
  gap: [5, 0, 10, 0], dur: [10, 20, 5, 50], phase: [0, 1, 0, 0], task: [0, -1, 1, 1], task_op: [0, 1], event: [8], truncated: [3], iteration: [0, 0, 0, 0],
});

test("spans come back in place", () => {
  const spans = someSpans();
  assert.deepEqual([...spans.begin], [5, 15, 45, 0]);
  assert.deepEqual([...spans.end], [15, 35, 50, 50]);
  assert.deepEqual([...spans.op], [0, -1, 1, 1]);
  assert.deepEqual([...spans.event], [-1, 7, -1, -1]);
  assert.ok(spans.truncated.has(3));
  assert.equal(spans.bands.length, 2);
  assert.equal(findSpan(spans, spans.rows[0], 20, 0), 1);
  assert.equal(findSpan(spans, spans.rows[0], 40, 2), -1);
  assert.equal(findSpan(spans, spans.rows[0], 44, 2), 2);
  assert.equal(findSpan(spans, spans.rows[0], 51, 2), 2);
});

test("a pixel takes the class that fills most of it", () => {
  const spans = someSpans(), levels = 18, lut = new Uint32Array(3 * levels), width = 5, high = new Uint32Array(width), low = new Uint32Array(width);
  for (let c = 0; c < 3; c++) for (let v = 0; v < levels; v++) lut[c * levels + v] = 100 * (c + 1) + v;
  rasterise(spans, spans.rows[0], Uint8Array.from([0, 1, 0, 0]), 0, 0.1, width, high, low, lut, Uint8Array.from([0, 1, 0]));
  const kinds = [...low].map((word) => (word ? Math.floor(word / 100) - 1 : -1));
  assert.deepEqual(kinds.slice(0, 1), [0]); // half of it covered
  assert.ok(low[0] % 100 < 16 && low[0] % 100 >= 7);
  assert.deepEqual(kinds.slice(2), [1, 1, 0]);
  assert.equal(high[2], 0); // waiting shows in the lower half only
  assert.notEqual(high[4], 0);
});

test("rasterising agrees with a slow count", () => {
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (let round = 0; round < 40; round++) {
    const n = 200, begin = new Float64Array(n), end = new Float64Array(n), classes = new Uint8Array(n);
    for (let i = 0, t = random() * 10; i < n; i++) { begin[i] = t; t = end[i] = t + random() * 6; t += random() < 0.5 ? 0 : random() * 4; classes[i] = Math.floor(random() * 3); }
    const width = 60, t0 = 20 + random() * 100, perNs = 0.2 + random(), levels = 18;
    const lut = Uint32Array.from({ length: 3 * levels }, (_, k) => 1 + Math.floor(k / levels));
    const low = new Uint32Array(width), high = new Uint32Array(width);
    rasterise({ begin, end }, { lo: 0, hi: n }, classes, t0, perNs, width, high, low, lut, new Uint8Array(3));
    for (let p = 0; p < width; p++) {
      const sums = [0, 0, 0];
      for (let i = 0; i < n; i++) sums[classes[i]] += Math.max(0, Math.min((end[i] - t0) * perNs, p + 1) - Math.max((begin[i] - t0) * perNs, p));
      const most = Math.max(...sums);
      if (most < 1e-6) assert.equal(low[p], 0);
      else if (sums.filter((s) => most - s < 1e-6).length === 1) assert.equal(low[p], 1 + sums.indexOf(most), `round ${round} pixel ${p} ${sums}`);
    }
  }
});

test("colour classes", () => {
  const spans = someSpans();
  const byKind = classify("kind", meta, spans, {});
  assert.deepEqual([...spans.task.keys()].map((i) => byKind.classes[byKind.of[i]].name), ["linear", "wait", "add", "add"]);
  assert.deepEqual([...classify("phase", meta, spans, {}).of], [0, 1, 0, 0]);
  const byLayer = classify("layer", meta, spans, {});
  assert.equal(byLayer.classes[byLayer.of[0]].name, "layer 0");
  assert.equal(byLayer.classes[byLayer.of[2]].name, "no layer");
});

test("activity is exact", () => {
  const activity = new Activity([0, 5, 5], [10, 10, 20]);
  assert.equal(activity.mean(0, 5), 1);
  assert.equal(activity.mean(5, 10), 3);
  assert.equal(activity.mean(0, 20), (10 + 5 + 15) / 20);
  assert.equal(activity.mean(30, 40), 0);
});

const dagMeta = {
  ops: [{ name: "layer0.a", kind: 0, layer: 0 }, { name: "layer0.b", kind: 1, layer: 0 }, { name: "end", kind: 0, layer: -1 }], kinds: [{ name: "linear" }, { name: "attention" }],
  groups: ["layer 0", "end"], edge_kinds: ["raw", "war"], tensors: ["t", "u"], columns: [{ name: "bytes" }, { name: "worker" }],
};
const dagColumns = {
  first: Int32Array.from([0, 3, 7, 8]), group: [0, 0, 1], edge_producer: [0, 1, 2], edge_consumer: [1, 2, 0], edge_lag: [0, 0, 1], edge_kind: [0, 0, 1],
  edge_tensor: [0, 1, 1], edge_begin: Int32Array.from([0, 1, 2, 0, 0, 0, 0, 0]), edge_length: Int32Array.from([1, 1, 1, 3, 4, 1, 1, 0]),
  value0: Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]), value1: Int32Array.from([0, 1, 0, 1, 0, 1, 0, -1]),
};

test("neighbours are each other's", () => {
  const model = readTasks(dagMeta, dagColumns);
  const pairs = new Set(), back = new Set();
  for (let task = 0; task < model.n; task++) {
    for (const { set, a, b } of predecessors(model, task)) for (let p = a; p < b; p++) pairs.add(`${p}>${task}/${set.lag}`);
    for (const { set, a, b } of successors(model, task)) for (let s = a; s < b; s++) back.add(`${task}>${s}/${set.lag}`);
  }
  assert.deepEqual([...pairs].sort(), [...back].sort());
  assert.ok(pairs.has("0>3/0") && pairs.has("2>6/0") && pairs.has("6>7/0") && pairs.has("7>0/1") && !pairs.has("7>2/1"));
});

test("a search means what it says", () => {
  const model = readTasks(dagMeta, dagColumns);
  const find = (text) => { const { tests, problems } = parseQuery(text, ["bytes", "worker"]); assert.deepEqual(problems, [], text); return search(model, dagMeta, tests); };
  assert.deepEqual(find("op:attention"), [3, 4, 5, 6]);
  assert.deepEqual(find("kind:linear layer:0"), [0, 1, 2]);
  assert.deepEqual(find("bytes>=6 worker:0-1"), [5, 6]);
  assert.deepEqual(find("end"), [7]);
  assert.deepEqual(find("tile:0"), [0, 3, 7]);
  assert.deepEqual(find("task:2-4"), [2, 3, 4]);
  assert.deepEqual(find("tensor:t op:b"), [3, 4, 5, 6]);
  assert.deepEqual(find(""), []);
  assert.match(parseQuery("colour:red", []).problems[0], /colour:red/);
  assert.match(parseQuery("bytes>many", ["bytes"]).problems[0], /not a number/);
});

test("boxes do not overlap, folded or not", () => {
  const model = readTasks(dagMeta, dagColumns);
  for (const [folded, groups] of [[new Set(), new Set()], [new Set([1]), new Set()], [new Set(), new Set([0])]]) {
    const { boxes, width, height } = place(model, 2, 1.5, folded, groups);
    const seen = boxes.filter((b) => !b.hidden);
    for (const a of seen) {
      assert.ok(a.x + a.w <= width && a.y + a.h <= height + 2);
      for (const b of seen) assert.ok(a === b || a.x >= b.x + b.w || b.x >= a.x + a.w || a.y >= b.y + b.h || b.y >= a.y + a.h);
    }
  }
});

test("the table sorts and keeps ties", () => {
  const model = readTasks(dagMeta, dagColumns), columns = tableColumns(model, dagMeta, dagColumns);
  const worker = columns.find((c) => c.name === "worker");
  assert.deepEqual([...ordered([0, 1, 2, 3, 7], worker, true)], [1, 3, 0, 2, 7]);
  assert.deepEqual([...ordered([0, 1, 2, 3, 7], worker, false)], [7, 0, 2, 1, 3]);
  assert.equal(worker.show(-1), "");
});

test("marks lead from operators to lines and back", () => {
  const meta = { ops: ["a", "b", "c"], marks: [[[0, 3, 3, "variant"], [1, 10, 20, "compute"]], [[0, 4, 4, "variant"], [1, 10, 20, "compute"]]] };
  assert.deepEqual(marksOfFile(meta, [0, 1], 1), [[10, 20, "compute"]]);
  assert.deepEqual(marksOfFile(meta, [1], 0), [[4, 4, "variant"]]);
  assert.deepEqual(operatorsAt(meta, [0, 1, 0], 0, 3), [0, 2]);
  assert.deepEqual(operatorsAt(meta, [0, 1, 0], 1, 20), [0, 1, 2]);
  assert.deepEqual(operatorsAt(meta, [0, 1, 0], 1, 21), []);
});

test("small helpers", () => {
  assert.deepEqual(columnsOf({ "a.x": 1, "ab.x": 2, "a.y": 3 }, "a"), { x: 1, y: 3 });
  assert.deepEqual(boxOfOperator([{ ops: [0, 4] }, { ops: [2] }]).get(4), { box: 0, copy: 1 });
});
