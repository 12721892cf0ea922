"""Rewrites of a graph into a new graph, each with a name; a plan lists them as text such as `split_attention:4`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from mpklab.dims import upper
from mpklab.errors import GraphError, suggest
from mpklab.graph import Graph, Operator, Tensor

Pass = Callable[..., Graph]
PASSES: dict[str, Pass] = {}


def _pass(function: Pass) -> Pass:
    PASSES[function.__name__] = function
    return function


def apply(graph: Graph, names: Iterable[str]) -> Graph:
    """Run passes in order. A name may carry integer arguments: `split_attention:4`."""
    for text in names:
        name, *arguments = text.split(":")
        if name not in PASSES:
            raise GraphError(f"unknown pass {name!r}: {suggest(name, PASSES)}")
        if not all(a.isdigit() for a in arguments):
            raise GraphError(f"pass {text!r}: arguments must be whole numbers")
        graph = PASSES[name](graph, *map(int, arguments))
    return graph


def _only_reader(graph: Graph, tensor: str) -> Operator | None:
    """The one operator that reads an activation, if it is one and nobody else looks at the tensor."""
    readers = graph.readers(tensor)
    return readers[0] if len(readers) == 1 and graph.tensors[tensor].role == "activation" else None


def _producer(graph: Graph, tensor: str) -> Operator | None:
    writers = graph.writers(tensor)
    return writers[0] if len(writers) == 1 else None


def _free_between(
    graph: Graph, first: Operator, last: Operator, read: str | None = None, write: str | None = None
) -> bool:
    """Whether a read or a write may move from one operator to the other: nothing between them is in its way.

    Only tensors with several writers (state, or an output named by hand) can be.
    """
    names = [o.name for o in graph.operators]
    low, high = sorted((names.index(first.name), names.index(last.name)))
    for o in graph.operators[low + 1 : high]:
        written, seen = ({o.operands[k] for k in side} for side in (o.outputs, o.inputs))
        if read in written or write in written or write in seen:
            return False
    return True


@_pass
def merge_linears(graph: Graph) -> Graph:
    """Linears of one input become one linear over their weights' rows: q/k/v, and gate/up.

    Readers must be able to take columns of a wider tensor (attention, silu_mul). The merged weight has `parts`.
    """
    tensors = dict(graph.tensors)
    taken = {o.name for o in graph.operators}
    merged: dict[str, Operator] = {}
    gone: set[str] = set()
    edits: dict[str, Operator] = {}
    for reader in graph.operators:
        operands = {"attention": ("q", "k", "v"), "silu_mul": ("gate", "up")}.get(reader.op)
        if operands is None:
            continue
        sources = [_producer(graph, reader.operands[k]) for k in operands]
        if not all(s is not None and s.op == "linear" and s.attrs["epilogue"] == "none" for s in sources):
            continue
        linears = [s for s in sources if s is not None]
        shared = [{k: v for k, v in s.operands.items() if k not in ("weight", "out")} for s in linears]
        if len({s.name for s in linears}) != len(linears) or "bias" in shared[0]:
            continue
        if any(x != shared[0] for x in shared) or any(s.attrs != linears[0].attrs for s in linears):
            continue
        if not all(_free_between(graph, linears[0], s, read=s.operands["x"]) for s in linears):
            continue
        if any(_only_reader(graph, s.operands["out"]) is None for s in linears):
            continue
        first = linears[0]
        heights = [upper(tensors[s.operands["weight"]].shape[0]) for s in linears]
        stem, suffix = ("qkv", "proj") if reader.op == "attention" else ("gate_up", "proj")
        prefix = first.name.rpartition(".")[0]
        name = base = f"{prefix}.{stem}_{suffix}" if prefix else f"{stem}_{suffix}"
        while name in taken or not {name, f"{name}.weight"}.isdisjoint(tensors):
            name = f"{base}_{len(merged)}" if name == base else f"{name}_"
        weight = tensors[first.operands["weight"]]
        parts = tuple(s.operands["weight"] for s in linears)
        tensors[f"{name}.weight"] = Tensor(
            f"{name}.weight", (sum(heights), weight.shape[1]), weight.dtype, "weight", parts
        )
        out = tensors[first.operands["out"]]
        tensors[name] = replace(out, name=name, shape=(out.shape[0], sum(heights)))
        merged[first.name] = replace(
            first, name=name, operands={**first.operands, "weight": f"{name}.weight", "out": name}
        )
        gone.update(s.name for s in linears)
        offsets = {f"{k}_offset": sum(heights[:i]) for i, k in enumerate(operands)}
        extra = {"width": heights[0]} if reader.op == "silu_mul" else {}
        edits[reader.name] = replace(
            reader,
            operands={**reader.operands, **dict.fromkeys(operands, name)},
            attrs={**reader.attrs, **offsets, **extra},
        )
    operators = [
        merged[o.name] if o.name in merged else edits.get(o.name, o)
        for o in graph.operators
        if o.name in merged or o.name not in gone
    ]
    return graph.rewritten(tensors, operators)


@_pass
def fuse_norm(graph: Graph) -> Graph:
    """rms_norm moves into the linears that read it, where it costs one more reduced value and no hand-off."""
    edits: dict[str, Operator] = {}
    gone: set[str] = set()
    for norm in graph.operators:
        if norm.op != "rms_norm" or graph.tensors[norm.operands["out"]].role != "activation":
            continue
        readers = graph.readers(norm.operands["out"])
        if not readers or not all(r.op == "linear" and "norm_weight" not in r.operands for r in readers):
            continue
        if not all(_free_between(graph, norm, r, read=norm.operands["x"]) for r in readers):
            continue
        gone.add(norm.name)
        for r in readers:
            operands = {**r.operands, "x": norm.operands["x"], "norm_weight": norm.operands["weight"]}
            edits[r.name] = replace(r, operands=operands, attrs={**r.attrs, "eps": norm.attrs["eps"]})
    return graph.rewritten(graph.tensors, [edits.get(o.name, o) for o in graph.operators if o.name not in gone])


@_pass
def fuse_silu_mul(graph: Graph) -> Graph:
    """silu_mul becomes the epilogue of a merged gate_up linear: a tile owns the same rows of both halves."""
    tensors = dict(graph.tensors)
    edits: dict[str, Operator] = {}
    gone: set[str] = set()
    for op in graph.operators:
        if op.op != "silu_mul" or op.operands["gate"] != op.operands["up"]:
            continue
        source = _producer(graph, op.operands["gate"])
        if source is None or source.op != "linear" or source.attrs["epilogue"] != "none":
            continue
        if _only_reader(graph, source.operands["out"]) is None:
            continue
        if not _free_between(graph, source, op, write=op.operands["out"]):
            continue
        weight = tensors[source.operands["weight"]]
        width, groups = upper(weight.shape[0]) // 2, op.attrs.get("groups", 1)
        if (op.attrs["gate_offset"], op.attrs["up_offset"], op.attrs["width"]) != (0, width // groups, width):
            continue
        if groups > 1:  # rows that only the addresses deal out can be taken in the parts' own order instead
            heights = {upper(tensors[p].shape[0]) for p in weight.parts}
            if weight.groups != groups or len(weight.parts) != 2 or len(heights) != 1 or "bias" in source.operands:
                continue
            weight = replace(weight, name=f"{weight.name}.in_order", groups=1)
            tensors[weight.name] = weight
        edits[source.name] = replace(
            source,
            operands={**source.operands, "weight": weight.name, "out": op.operands["out"]},
            attrs={**source.attrs, "epilogue": "silu_mul"},
        )
        gone.add(op.name)
    return graph.rewritten(tensors, [edits.get(o.name, o) for o in graph.operators if o.name not in gone])


@_pass
def fuse_residual(graph: Graph) -> Graph:
    """A residual add becomes the epilogue of the linear before it."""
    edits: dict[str, Operator] = {}
    gone: set[str] = set()
    for op in graph.operators:
        if op.op != "add" or op.operands["a"] == op.operands["b"]:  # a sum with itself has no residual
            continue
        for mine, other in (("b", "a"), ("a", "b")):
            source = _producer(graph, op.operands[mine])
            if source is None or source.op != "linear" or source.attrs["epilogue"] != "none" or source.name in edits:
                continue
            if _only_reader(graph, source.operands["out"]) is None or source.attrs["out_dtype"]:
                continue
            if not _free_between(graph, source, op, read=op.operands[other], write=op.operands["out"]):
                continue  # the residual, say, is not written yet where the linear stands
            edits[source.name] = replace(
                source,
                operands={**source.operands, "out": op.operands["out"], "residual": op.operands[other]},
                attrs={**source.attrs, "epilogue": "residual"},
            )
            gone.add(op.name)
            break
    return graph.rewritten(graph.tensors, [edits.get(o.name, o) for o in graph.operators if o.name not in gone])


@_pass
def split_attention(graph: Graph, splits: int, bits: int = 32) -> Graph:
    """Each attention is cut into pieces of the context, joined by an attention_merge. splits=1 leaves it whole.

    `bits`: 32 keeps the pieces in float32, 16 in the attention's own dtype, half of what the merge reads.
    """
    if splits < 1:
        raise GraphError(f"split_attention: splits must be at least 1, not {splits}")
    if bits not in (16, 32):
        raise GraphError(f"split_attention: pieces are kept in 32 or 16 bits, not {bits}")
    if splits == 1:
        return graph
    tensors = dict(graph.tensors)
    operators: list[Operator] = []
    for op in graph.operators:
        if op.op != "attention" or op.attrs["splits"] != 1:
            operators.append(op)
            continue
        out = tensors[op.operands["out"]]
        batch, heads = out.shape[0], op.attrs["heads"]
        d = upper(out.shape[1]) // heads
        kept = "float32" if bits == 32 else out.dtype
        partial = Tensor(f"{op.name}.partial", (batch, heads, splits, d), kept, "activation")
        stats = Tensor(f"{op.name}.stats", (batch, heads, splits, 2), "float32", "activation")
        tensors |= {partial.name: partial, stats.name: stats}
        operators.append(
            replace(
                op,
                operands={**op.operands, "out": partial.name, "stats": stats.name},
                attrs={**op.attrs, "splits": splits, "partial_dtype": kept},
            )
        )
        operators.append(
            Operator(
                f"{op.name}_merge",
                "attention_merge",
                {"partial": partial.name, "stats": stats.name, "out": out.name},
                {"out_dtype": out.dtype},
                op.layer,
            )
        )
    return graph.rewritten(tensors, operators)


@_pass
def fuse_merge(graph: Graph) -> Graph:
    """attention_merge moves into the linear that reads it: one hand-off less, the merge done by every tile."""
    edits: dict[str, Operator] = {}
    gone: set[str] = set()
    for op in graph.operators:
        if op.op != "attention_merge":
            continue
        reader = _only_reader(graph, op.operands["out"])
        if reader is None or reader.op != "linear" or "norm_weight" in reader.operands:
            continue
        operands = {**reader.operands, "x": op.operands["partial"], "stats": op.operands["stats"]}
        edits[reader.name] = replace(reader, operands=operands)
        gone.add(op.name)
    return graph.rewritten(graph.tensors, [edits.get(o.name, o) for o in graph.operators if o.name not in gone])


def _resized(tensors: dict[str, Tensor], op: Operator, parts: int) -> None:
    for k in ("value", "index", "words"):
        if k in op.operands:
            t = tensors[op.operands[k]]
            tensors[t.name] = replace(t, shape=(t.shape[0], parts, *t.shape[2:]))


@_pass
def split_argmax(graph: Graph, parts: int) -> Graph:
    """Each argmax looks at `parts` pieces of its input."""
    return _split(graph, "argmax_partial", parts)


@_pass
def split_sample(graph: Graph, parts: int) -> Graph:
    """Each sample_partial looks at `parts` pieces of its input."""
    return _split(graph, "sample_partial", parts)


def _split(graph: Graph, kind: str, parts: int) -> Graph:
    tensors = dict(graph.tensors)
    operators = []
    for op in graph.operators:
        if op.op == kind:
            pieces = min(parts, upper(tensors[op.operands["x"]].shape[1]))
            _resized(tensors, op, pieces)
            op = replace(op, attrs={**op.attrs, "parts": pieces})
        operators.append(op)
    return graph.rewritten(tensors, operators)


@_pass
def fuse_argmax(graph: Graph) -> Graph:
    """argmax_partial becomes an epilogue of the linear that writes the logits: each tile keeps its own largest."""
    edits: dict[str, Operator] = {}
    gone: set[str] = set()
    for op in graph.operators:
        if op.op != "argmax_partial":
            continue
        source = _producer(graph, op.operands["x"])
        if (
            source is None
            or source.op != "linear"
            or source.attrs["argmax_parts"]
            or source.attrs["epilogue"] != "none"
        ):
            continue
        operands = {**source.operands, "value": op.operands["value"], "index": op.operands["index"]}
        edits[source.name] = replace(
            source, operands=operands, attrs={**source.attrs, "argmax_parts": op.attrs["parts"]}
        )
        gone.add(op.name)
    return graph.rewritten(graph.tensors, [edits.get(o.name, o) for o in graph.operators if o.name not in gone])
