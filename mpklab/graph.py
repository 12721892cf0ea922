"""The operator graph of one step (level 1): tensors, operators in program order, and a builder that checks each addition.

A Graph is a frozen value. Operators run in program order as far as meaning goes; what really orders them is worked out
later from the boxes their tiles touch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sympy

from mpklab.dims import Dim, Extent, dims_of, upper
from mpklab.errors import GraphError, suggest
from mpklab.ops import REGISTRY, Node, TensorType, Tiling
from mpklab.ops.base import ITEM_BYTES
from mpklab.presented import Presented

ROLES = ("input", "weight", "activation", "state", "output")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor. A weight with `parts` is those weights' rows one after another, wherever each of them lies; with
    `groups` > 1 their rows are dealt out: the first share of each part, then the second of each, and so on.

    `order` are the axes as they are stored, outermost first; empty: as they stand.
    """

    name: str
    shape: tuple[Extent, ...]
    dtype: str
    role: str
    parts: tuple[str, ...] = ()
    groups: int = 1
    order: tuple[int, ...] = ()

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype, self.order)

    @property
    def bytes(self) -> int:
        """Size with every dim at its maximum."""
        return self.type.bytes

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


@dataclass(frozen=True, slots=True)
class Operator:
    """One use of an operator: which tensor stands for which operand."""

    name: str
    op: str
    operands: Mapping[str, str]
    attrs: Mapping[str, Any]
    layer: int | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Operands that are written, in-place ones included."""
        return tuple(o.name for o in REGISTRY.ops[self.op].operands if o.access != "r" and o.name in self.operands)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Operands that are read, in-place ones included."""
        return tuple(o.name for o in REGISTRY.ops[self.op].operands if o.access != "w" and o.name in self.operands)


@dataclass(frozen=True, repr=False)
class Graph(Presented):
    """Tensors by name and operators in program order; checked on construction (GraphError)."""

    name: str
    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    parent: Graph | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))
        _check(self)

    @cached_property
    def dims(self) -> tuple[Dim, ...]:
        """Every run-time size, in the order of Step.dims."""
        found = {d for t in self.tensors.values() for d in dims_of(t.shape)}
        return tuple(sorted(found, key=str))

    def node(self, operator: Operator) -> Node:
        """The operator as its rules see it."""
        types = {k: self.tensors[v].type for k, v in operator.operands.items()}
        return Node(operator.name, operator.op, types, operator.attrs, self.dims)

    def operator(self, name: str) -> Operator:
        """The operator of that name."""
        for op in self.operators:
            if op.name == name:
                return op
        raise GraphError(
            f"graph {self.name!r} has no operator {name!r}: {suggest(name, (o.name for o in self.operators))}"
        )

    def operands_of(self, op: str) -> dict[str, str]:
        """Operand → tensor of the first operator of that kind; empty where there is none."""
        return next((dict(o.operands) for o in self.operators if o.op == op), {})

    def writers(self, tensor: str) -> tuple[Operator, ...]:
        """The operators that write a tensor, in program order; none where there is no such tensor."""
        return self._users[1].get(tensor, ())

    def readers(self, tensor: str) -> tuple[Operator, ...]:
        """The operators that read a tensor, in program order; none where there is no such tensor."""
        return self._users[0].get(tensor, ())

    @cached_property
    def _users(self) -> tuple[dict[str, tuple[Operator, ...]], dict[str, tuple[Operator, ...]]]:
        """Readers and writers of every tensor, each operator once."""
        found: tuple[dict[str, dict[str, Operator]], dict[str, dict[str, Operator]]] = ({}, {})
        for o in self.operators:
            for users, operands in zip(found, (o.inputs, o.outputs), strict=True):
                for k in operands:
                    users.setdefault(o.operands[k], {})[o.name] = o
        readers, writers = ({t: tuple(by_name.values()) for t, by_name in users.items()} for users in found)
        return readers, writers

    def weight_bytes(self) -> int:
        """Bytes of all weights, parts counted once."""
        held = {p for t in self.tensors.values() for p in t.parts}
        return sum(t.bytes for t in self.tensors.values() if t.role == "weight" and t.name not in held)

    @cached_property
    def cost(self) -> tuple[float, float]:
        """(flops, bytes) of one step, every operator in one tile."""
        flops = moved = 0.0
        for operator in self.operators:
            rules = REGISTRY.ops[operator.op]
            node = self.node(operator)
            parts = operator.attrs.get("parts") or operator.attrs.get("argmax_parts") or 1
            tiles = rules.tiles(node, Tiling(parts=parts))
            flops += float(tiles.flops.sum())
            moved += float(tiles.bytes.sum())
        return flops, moved

    @cached_property
    def hash(self) -> str:
        """A short content hash."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def text(self) -> str:
        """One line per operator; what golden tests compare."""
        lines = [f"graph {self.name}" + "".join(f" {d}≤{d.max}" for d in self.dims)]
        for t in self.tensors.values():
            if t.role in ("input", "state") or t.parts:
                how = f"; {t.groups} groups" if t.groups > 1 else ""
                parts = f" = concat({', '.join(t.parts)}{how})" if t.parts else ""
                lines.append(f"  {t.role} {t}{parts}")
        for o in self.operators:
            rules = REGISTRY.ops[o.op]
            out = ", ".join(str(self.tensors[o.operands[k]]) for k in rules.outputs() if k in o.operands)
            given = ", ".join(f"{k}={o.operands[k]}" for k in o.operands if k not in rules.outputs())
            attrs = ", ".join(f"{k}={v}" for k, v in sorted(o.attrs.items()) if v != rules.attrs.get(k))
            lines.append(f"  {out} = {o.op}({given}{'; ' + attrs if attrs else ''})  # {o.name}")
        return "\n".join(lines)

    def block_graph(self, name: str) -> str:
        """What one tile of an operator loads, computes and stores (level 2)."""
        operator = self.operator(name)
        stages = REGISTRY.ops[operator.op].block_graph(self.node(operator))
        return "\n".join(f"{s.kind:8}{s.what}{'  (' + s.detail + ')' if s.detail else ''}" for s in stages)

    def thread_graph(self, name: str) -> str:
        """How warps and lanes share that tile (level 3)."""
        operator = self.operator(name)
        return REGISTRY.ops[operator.op].thread_graph(self.node(operator))

    @property
    def origin(self) -> Graph:
        """The graph before any pass: itself, or the first of its ancestors."""
        graph = self
        while graph.parent is not None:
            graph = graph.parent
        return graph

    def to_json(self, origin: bool = False) -> dict[str, Any]:
        """The graph as `from_json` takes it; with `origin` also the one that passes made it of, which prefill goes through."""
        return {
            **({"origin": self.origin.to_json()} if origin and self.parent is not None else {}),
            "format": FORMAT,
            "name": self.name,
            "dims": {str(d): d.max for d in self.dims},
            "tensors": [
                {
                    "name": t.name,
                    "shape": [e if isinstance(e, int) else str(e) for e in t.shape],
                    "dtype": t.dtype,
                    "role": t.role,
                    "parts": list(t.parts),
                    **({"groups": t.groups} if t.groups > 1 else {}),
                    **({"order": list(t.order)} if t.order else {}),
                }
                for t in self.tensors.values()
            ],
            "operators": [
                {"name": o.name, "op": o.op, "operands": dict(o.operands), "attrs": dict(o.attrs), "layer": o.layer}
                for o in self.operators
            ],
            "meta": dict(self.meta),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Graph:
        """The graph that `to_json` described; GraphError when it is not one."""
        try:
            if data["format"] != FORMAT:
                raise GraphError(f"graph file of format {data['format']}; this version reads {FORMAT}")
            dims = {name: Dim(name, most) for name, most in data["dims"].items()}
            tensors = {
                t["name"]: Tensor(
                    t["name"],
                    tuple(e if isinstance(e, int) else _expression(e, dims) for e in t["shape"]),
                    t["dtype"],
                    t["role"],
                    tuple(t["parts"]),
                    t.get("groups", 1),
                    tuple(t.get("order", ())),
                )
                for t in data["tensors"]
            }
            operators = tuple(
                Operator(o["name"], o["op"], dict(o["operands"]), dict(o["attrs"]), o["layer"])
                for o in data["operators"]
            )
            parent = Graph.from_json(data["origin"]) if "origin" in data else None
            return Graph(data["name"], tensors, operators, data["meta"], parent)
        except (KeyError, TypeError, AttributeError) as error:
            raise GraphError(f"not a graph description: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """The graph as JSON, and the one that passes made it of; `Graph.load` reads both back."""
        Path(path).write_text(json.dumps(self.to_json(origin=True)), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Graph:
        """What `save` wrote; GraphError when it is not that."""
        try:
            return Graph.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise GraphError(f"{path} is not a saved graph: {error}") from error

    def to_pandas(self) -> Any:
        """One row per operator: operator, op, layer (-1: none), reads and writes (names of tensors, with commas)."""
        import pandas as pd

        rows = [
            {
                "operator": o.name,
                "op": o.op,
                "layer": -1 if o.layer is None else o.layer,
                "reads": ", ".join(o.operands[k] for k in o.inputs),
                "writes": ", ".join(o.operands[k] for k in o.outputs),
            }
            for o in self.operators
        ]
        return pd.DataFrame(rows, columns=["operator", "op", "layer", "reads", "writes"])

    def rewritten(self, tensors: Mapping[str, Tensor], operators: list[Operator], **meta: Any) -> Graph:
        """A new graph made from this one: tensors no operator uses any more are dropped, `parent` leads back here."""
        used = {v for o in operators for v in o.operands.values()}
        kept = {n: t for n, t in tensors.items() if n in used or t.role in ("input", "output", "state")}
        for t in list(kept.values()):
            for part in t.parts:
                kept.setdefault(part, tensors[part])
        return Graph(self.name, kept, tuple(operators), {**self.meta, **meta}, parent=self)

    def __str__(self) -> str:
        flops, moved = self.cost
        return (
            f"Graph {self.name}: {len(self.operators)} operators, {self.weight_bytes() / 1e6:.1f} MB of weights, "
            f"{flops / 1e9:.3f} GFLOP and {moved / 1e6:.1f} MB a step"
        )


def _expression(text: str, dims: Mapping[str, Dim]) -> sympy.Expr:
    """Sizes in files are a dim or `integer*dim`; nothing else is evaluated."""
    factor, _, name = text.rpartition("*")
    if name not in dims or not (factor == "" or factor.isdigit()):
        raise GraphError(
            f"size {text!r} is neither an integer nor a known dim, nor an integer times one: {sorted(dims)}"
        )
    return dims[name] * int(factor or 1)


def _check(graph: Graph) -> None:
    ready = {n for n, t in graph.tensors.items() if t.role in ("input", "weight", "state")}
    names: set[str] = set()
    for a, b in itertools.pairwise(graph.dims):
        if str(a) == str(b):
            low, high = sorted((a.max, b.max))
            raise GraphError(f"the dim {str(a)!r} has two maxima, {low} and {high}; use one Dim for both")
    for name, t in graph.tensors.items():
        if name != t.name:
            raise GraphError(f"tensor {t.name!r} is filed under {name!r}")
        if t.role not in ROLES:
            raise GraphError(f"{t.name}: role must be one of {', '.join(ROLES)}, not {t.role!r}")
        if t.dtype not in ITEM_BYTES:
            raise GraphError(f"{t.name}: {suggest(t.dtype, ITEM_BYTES)}; found dtype {t.dtype!r}")
        if not all(upper(e) >= 1 for e in t.shape):
            raise GraphError(f"{t.name}: every size must be at least 1, found {t.type}")
        for part in t.parts:
            if part not in graph.tensors:
                raise GraphError(f"{t.name}: its part {part!r} is not a tensor of the graph")
            height = upper(graph.tensors[part].shape[0])
            if t.groups < 1 or height % t.groups:
                raise GraphError(f"{t.name}: the {height} rows of {part!r} cannot be dealt out in {t.groups} groups")
        if t.order and sorted(t.order) != list(range(len(t.shape))):
            raise GraphError(f"{t.name}: order {t.order} must name each of its {len(t.shape)} axes once")
    for o in graph.operators:
        if o.name in names:
            raise GraphError(f"two operators are called {o.name!r}; every operator needs its own name")
        names.add(o.name)
        rules = REGISTRY.ops.get(o.op)
        if rules is None:
            raise GraphError(f"{o.name}: unknown operator {o.op!r}: {suggest(o.op, REGISTRY.ops)}")
        known = {p.name for p in rules.operands}
        for k, v in o.operands.items():
            if k not in known:
                raise GraphError(f"{o.name} ({o.op}) has no operand {k!r}: {suggest(k, known)}")
            if v not in graph.tensors:
                raise GraphError(f"{o.name} ({o.op}): {k} names the tensor {v!r}, which the graph does not have")
        for p in rules.operands:
            if p.name not in o.operands:
                if not p.optional:
                    raise GraphError(f"{o.name} ({o.op}): operand {p.name!r} is missing")
                continue
            order = graph.tensors[o.operands[p.name]].order
            if order and order not in p.orders:
                raise GraphError(
                    f"{o.name} ({o.op}): {p.name} cannot be read with its axes stored in the order {order}"
                )
        for k in o.attrs:
            if k not in rules.attrs:
                raise GraphError(f"{o.name} ({o.op}) has no attribute {k!r}: {suggest(k, rules.attrs)}")
        for k in o.inputs:
            if o.operands[k] not in ready:
                raise GraphError(f"{o.name} ({o.op}): {k} reads {o.operands[k]!r} before any operator writes it")
        for k, wanted in rules.infer(graph.node(o)).items():
            found = graph.tensors[o.operands[k]].type
            if found != wanted:
                raise GraphError(f"{o.name} ({o.op}): {k} must be {wanted}, but tensor {o.operands[k]!r} is {found}")
        for k in o.outputs:
            t = graph.tensors[o.operands[k]]
            if t.role in ("input", "weight"):
                raise GraphError(f"{o.name} ({o.op}): {k} would write {t.name!r}, whose role is {t.role}")
            ready.add(t.name)


class GraphBuilder:
    """Adds tensors and operators one at a time, checks each at once, and builds a Graph.

    Every operator is a method: `y = g.linear("layer0.up", x=x, weight=w)`. Outputs are created and returned (one
    tensor, or a tuple); they are named after the operator. `role="output"` marks what a run returns. Attributes are
    keywords too; an unknown keyword is an error.

    >>> g = GraphBuilder("toy")
    >>> x = g.input("x", (1, 64))
    >>> y = g.linear("up", x=x, weight=g.weight("w", (128, 64)), role="output")
    >>> graph = g.build()
    """

    def __init__(self, name: str, **meta: Any):
        self._name = name
        self._meta = meta
        self._tensors: dict[str, Tensor] = {}
        self._operators: list[Operator] = []

    def tensor(
        self,
        name: str,
        shape: tuple[Extent, ...],
        dtype: str,
        role: str,
        parts: tuple[str, ...] = (),
        groups: int = 1,
        order: tuple[int, ...] = (),
    ) -> Tensor:
        """Declare a tensor; the same declaration twice is the same tensor."""
        t = Tensor(name, tuple(shape), dtype, role, parts, groups, order)
        if self._tensors.setdefault(name, t) != t:
            raise GraphError(
                f"tensor {name!r} exists as {self._tensors[name]} ({self._tensors[name].role}), not {t} ({role})"
            )
        return t

    def input(self, name: str, shape: tuple[Extent, ...], dtype: str = "float32") -> Tensor:
        """Declare what every run is given."""
        return self.tensor(name, shape, dtype, "input")

    def weight(self, name: str, shape: tuple[Extent, ...], dtype: str = "float32") -> Tensor:
        """Declare what stays the same for all runs."""
        return self.tensor(name, shape, dtype, "weight")

    def state(self, name: str, shape: tuple[Extent, ...], dtype: str = "float32") -> Tensor:
        """Declare what one iteration leaves to the next; zeros before the first."""
        return self.tensor(name, shape, dtype, "state")

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op.startswith("_") or op not in REGISTRY.ops:
            raise AttributeError(f"GraphBuilder has no operator {op!r}: {suggest(op, REGISTRY.ops)}")
        return lambda name, **keywords: self.add_operator(op, name, **keywords)

    def add_operator(
        self, op: str, name: str, *, layer: int | None = None, role: str = "activation", **keywords: Any
    ) -> Any:
        """Append an operator by its kind: operands are tensors, the rest attributes; returns its outputs, one or a tuple.

        Outputs that are not given are declared, with the shapes and dtypes that the operator's rules infer and this `role`.
        GraphError names the operator and what does not fit. `builder.linear("y", x=x, weight=w)` is the same in short.
        """
        rules = REGISTRY.ops[op]
        known = {o.name for o in rules.operands}
        operands: dict[str, str] = {}
        attrs = dict(rules.attrs)
        for k, v in keywords.items():
            if k in known:
                if not isinstance(v, Tensor):
                    raise GraphError(f"{name} ({op}): {k} must be a tensor of this graph, not {type(v).__name__}")
                operands[k] = v.name
            elif k in rules.attrs:
                attrs[k] = v
            else:
                raise GraphError(f"{name} ({op}): unknown keyword {k!r}: {suggest(k, known | set(rules.attrs))}")
        for p in rules.operands:
            if p.access != "w" and not p.optional and p.name not in operands:
                raise GraphError(f"{name} ({op}): operand {p.name!r} is missing")
        node = Node(name, op, {k: self._tensors[v].type for k, v in operands.items()}, attrs)
        made = []
        outputs = rules.infer(node)
        for k, t in outputs.items():
            if k not in operands:
                tensor = self.tensor(name if k == "out" else f"{name}.{k}", t.shape, t.dtype, role)
                operands[k] = tensor.name
            made.append(self._tensors[operands[k]])
        order = {o.name: i for i, o in enumerate(rules.operands)}
        operands = dict(sorted(operands.items(), key=lambda kv: order[kv[0]]))
        self._operators.append(Operator(name, op, operands, attrs, layer))
        return made[0] if len(made) == 1 else tuple(made)

    def build(self) -> Graph:
        """The finished graph, checked as a whole."""
        return Graph(self._name, self._tensors, tuple(self._operators), self._meta)
