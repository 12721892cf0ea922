"""A program in the layer API as a graph: what each layer becomes, and the plan that keeps the grids it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NoReturn

import torch

from mpklab import passes
from mpklab.errors import GraphError, MpkError
from mpklab.graph import Graph, GraphBuilder, Tensor
from mpklab.imports.mirage import LAYER_OF_NAME
from mpklab.layers.tensors import NAME_OF, DTensor
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Node, TensorType, Tiling
from mpklab.ops.attention import ROWS_FIRST
from mpklab.ops.base import FLOATS
from mpklab.tasks import Plan, choose_plan

META = "meta."  # the names of tensors that no line of the program made


@dataclass(frozen=True)
class Call:
    """One operator to be: what GraphBuilder.add_operator takes, with graph tensors by name."""

    op: str
    name: str
    operands: Mapping[str, str]
    attrs: Mapping[str, Any]
    layer: int | None


@dataclass
class Program:
    """Tensors and operators as the layers add them.

    `memory` holds what lies outside the kernel, by graph tensor. A tensor between layers has no memory of its own: each
    write makes a graph tensor, and `value` says which one stands in it now.
    """

    step: torch.Tensor
    tokens: torch.Tensor
    max_seq_length: int
    eos: Sequence[int]
    handles: dict[str, DTensor] = field(default_factory=dict)
    attached: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    declared: dict[str, Tensor] = field(default_factory=dict)
    value: dict[str, str] = field(default_factory=dict)
    weight_of: dict[str, DTensor] = field(default_factory=dict)  # graph tensor → weight of the linear that wrote it
    calls: list[Call] = field(default_factory=list)
    grids: dict[str, int] = field(default_factory=dict)  # operator → its tiles, where a grid was given
    next_token: str | None = None

    # --- tensors ---

    def fresh(self, method: str, name: Any) -> str:
        """The start of messages about a new tensor; GraphError unless its name is one and new."""
        where = f"{method}(name={name!r})"
        if not isinstance(name, str) or not name or name.startswith(META):
            raise GraphError(f"{where}: a tensor needs a name, a text that does not begin with {META!r}")
        if name in self.handles:
            raise GraphError(f"{where}: the name is taken by {self.handles[name]}")
        return where

    def add(self, handle: DTensor) -> DTensor:
        """Keep a tensor under its name."""
        self.handles[handle.name] = handle
        return handle

    def declare(self, t: Tensor, memory: torch.Tensor | None = None) -> str:
        """A graph tensor; GraphError if it was declared otherwise before."""
        known = self.declared.setdefault(t.name, t)
        if known != t:
            raise GraphError(f"{t.name} is used as {known.type} and as {t.type}: attach it once for each use")
        if memory is not None:
            self.memory[t.name] = memory
        return t.name

    def declare_meta(self, name: str, shape: tuple[int, ...], dtype: str, memory: torch.Tensor | None = None) -> str:
        """A graph tensor that no line of the program made: state, called `meta.` and its name."""
        return self.declare(Tensor(META + name, shape, dtype, "state"), memory)

    # --- the whole ---

    def graph(self) -> Graph:
        """The program, closed by the operator that takes up the next token where one is made."""
        if not self.calls:
            raise GraphError("the program has no layers")
        g = GraphBuilder("layers", api="layers")
        calls, inputs = list(self.calls), set[str]()
        if self.next_token is not None:
            calls.append(self._advance())
            inputs = {META + "eos", META + "limit"}
        roles = self._roles(calls)
        made: dict[str, Tensor] = {}
        used = {t for call in calls for t in call.operands.values()}
        for t in self.declared.values():
            if t.name in used or any(t.name in self.declared[u].parts for u in used):
                role = "input" if t.name in inputs else roles.get(t.name, "weight")
                made[t.name] = g.tensor(t.name, t.shape, t.dtype, role, t.parts, t.groups, t.order)
        for call in calls:
            keywords: dict[str, Any] = {k: made[t] for k, t in call.operands.items()}
            g.add_operator(call.op, call.name, layer=call.layer, **keywords, **call.attrs)
        return g.build()

    def _roles(self, calls: Sequence[Call]) -> dict[str, str]:
        """What is written between layers is an activation; outside, an output, or state if it is read before."""
        read: set[str] = set()
        roles: dict[str, str] = {}
        for call in calls:
            for operand in REGISTRY.ops[call.op].operands:
                name = call.operands.get(operand.name)
                if name is None:
                    continue
                if operand.access != "w":
                    read.add(name)
                if operand.access != "r" and name not in roles:
                    outside = name in self.memory or name.startswith(META)
                    roles[name] = "activation" if not outside else "state" if name in read else "output"
        # A position that nothing moves on is read all the same, and belongs to the caller.
        return {META + "step": "state", META + "token": "state", **roles}

    def _advance(self) -> Call:
        """`advance` on the caller's own step and tokens."""
        assert self.next_token is not None
        width = self.tokens.shape[1]
        operands = {
            "next_token": self.next_token,
            "eos": self.declare_meta("eos", (len(self.eos),), "int32"),
            "limit": self.declare_meta("limit", (1,), "int32"),
            "token": self.declare_meta("token", (1,), "int32"),
            "position": self.declare_meta("step", (1,), "int32", self.step),
            "done": self.declare_meta("done", (1,), "int32"),
            "generated": self.declare_meta("tokens", (1, width), "int64", self.tokens),
        }
        return Call("advance", "advance", operands, {"context": width}, None)

    def check_memory(self, graph: Graph) -> None:
        """GraphError where what a layer writes overlaps what another name stands for."""
        spans = []
        for name, t in graph.tensors.items():
            if name in self.memory:
                begin = self.memory[name].data_ptr()
                spans.append((begin, begin + t.bytes, name, t.role in ("state", "output")))
        spans.sort()
        furthest = (0, "", False)  # the end of what began so far
        for begin, end, name, written in spans:
            if begin < furthest[0] and (written or furthest[2]):
                raise GraphError(
                    f"{furthest[1]} and {name} lie in the same memory, and the program writes to it: attach it once"
                )
            furthest = max(furthest, (end, name, written))

    def plan(self, graph: Graph, machine: Machine) -> Plan:
        """The machine's plan, without the passes that would undo a given grid, and with the grids as tilings."""
        chosen = choose_plan(graph, machine)
        if not self.grids:
            return chosen
        kept: list[str] = []
        rewritten = graph
        for name in chosen.passes:
            after = passes.apply(rewritten, [name])
            if self._keeps_grids(after):
                rewritten = after
                kept.append(name)
        plan = choose_plan(graph, machine, passes=tuple(kept))
        return replace(plan, tilings={**plan.tilings, **{name: Tiling(parts=n) for name, n in self.grids.items()}})

    def _keeps_grids(self, graph: Graph) -> bool:
        by_name = {o.name: o for o in graph.operators}
        try:
            return all(
                len(REGISTRY.ops[by_name[name].op].tiles(graph.node(by_name[name]), Tiling(parts=n))) == n
                for name, n in self.grids.items()
            )
        except (KeyError, MpkError):  # merged away, or cut by a number of its own
            return False


class Layer:
    """One call of a layer method while it is translated: checks its arguments and adds its operators."""

    def __init__(self, program: Program, method: str, stem: str, *named: DTensor | None):
        """`stem` names the operator unless one of the tensors `named` does: the first weight, or a cache for its layer."""
        self.program, self.method = program, method
        found = [LAYER_OF_NAME.search(t.name) for t in named if t is not None]
        match = next((m for m in found if m), None)
        self.layer = int(match[1]) if match else None
        taken = {c.name for c in program.calls}
        self.prefix = f"layer{self.layer}." if match else ""
        self.name = _unique(self.prefix + stem, taken)

    def refuse(self, message: str) -> NoReturn:
        """GraphError that names the layer and its place in the program."""
        raise GraphError(f"{self.method} {self.name!r} (operator {len(self.program.calls)} of the program): {message}")

    def within(self, stem: str) -> Layer:
        """A further operator of the same layer."""
        inner = Layer(self.program, self.method, stem)
        inner.layer, inner.prefix, inner.name = self.layer, self.prefix, f"{self.name}.{stem}"
        return inner

    def grid(self, grid_dim: Any, extent: int, what: str, keep: bool = True) -> None:
        """Take note of a grid that cuts one axis; its length must be a multiple of the grid's."""
        if grid_dim is None:
            return
        if not _is_grid(grid_dim) or tuple(grid_dim[1:]) != (1, 1):
            self.refuse(f"grid_dim must be (x, 1, 1), not {grid_dim!r}")
        if extent % grid_dim[0]:
            self.refuse(f"grid_dim ({grid_dim[0]}, 1, 1) does not divide the {extent} {what}")
        if keep:
            self.program.grids[self.name] = grid_dim[0]

    def read(self, argument: str, t: Any) -> str:
        """The graph tensor that stands in a tensor now."""
        program = self.program
        self._own(argument, t)
        if t.name in program.value:
            return program.value[t.name]
        if not t.parts and t.name not in program.attached:
            self.refuse(f"{argument} is {t}, which no layer has written yet")
        for part in t.parts:
            self._declare_attached(program.handles[part])
        if t.parts:
            shape, dtype = t.dims, NAME_OF[t.dtype]
            return program.declare(Tensor(t.name, shape, dtype, "weight", t.parts, t.num_groups))
        return self._declare_attached(t)

    def _own(self, argument: str, t: Any) -> None:
        if not isinstance(t, DTensor):
            self.refuse(f"{argument} must be a tensor of this kernel, not {type(t).__name__}")
        if self.program.handles.get(t.name) is not t:
            self.refuse(f"{argument} is {t}, a tensor of another kernel")

    def _declare_attached(self, t: DTensor) -> str:
        return self.program.declare(Tensor(t.name, t.dims, NAME_OF[t.dtype], "weight"), self.program.attached[t.name])

    def cache(self, argument: str, t: DTensor) -> str:
        """A cache [1, rows, kv, d], as far as a sequence reaches, where it lies."""
        program = self.program
        self._own(argument, t)
        if t.name not in program.attached:
            self.refuse(f"{argument} is {t}, which is not attached: caches are the caller's own tensors")
        _, _, kv, d = t.dims
        held = program.attached[t.name][:, : program.max_seq_length].transpose(1, 2)
        shape = (1, kv, program.max_seq_length, d)
        return program.declare(Tensor(t.name, shape, NAME_OF[t.dtype], "weight", order=ROWS_FIRST), held)

    def rope(self, cos: DTensor | None, sin: DTensor | None, d: int) -> str:
        """The rotations of every position, float32 [max_seq_length, d], made of the tables of cosines and sines."""
        program, rows = self.program, self.program.max_seq_length
        name = f"rope:{cos.name},{sin.name}" if cos is not None and sin is not None else f"rope:none,{d}"
        if META + name in program.declared:
            return META + name
        table = torch.zeros(rows, d, dtype=torch.float32, device=program.step.device)
        table[:, : d // 2] = 1.0
        if (cos is None) != (sin is None):
            self.refuse("cos_pos_embed and sin_pos_embed go together")
        for begin, t in ((0, cos), (d // 2, sin)):
            if t is None:
                continue
            self._own("cos_pos_embed and sin_pos_embed", t)
            if t.name not in program.attached or t.num_dims != 2 or t.dim(1) != d or t.dim(0) < rows:
                self.refuse(
                    f"cos_pos_embed and sin_pos_embed must be attached, with {d} columns and at least "
                    f"max_seq_length={rows} rows; found {t}"
                )
            low, high = program.attached[t.name][:rows].split(d // 2, 1)
            if not low.equal(high):
                self.refuse(f"both halves of {t.name} must be alike: rotary embedding turns halves of a head together")
            table[:, begin : begin + d // 2] = low
        return program.declare(Tensor(META + name, (rows, d), "float32", "weight"), table)

    def operator(self, op: str, operands: Mapping[str, str], attrs: Mapping[str, Any], **outputs: DTensor) -> str:
        """Add an operator; its outputs are what now stands in these tensors. Returns the first one's graph tensor."""
        program, rules = self.program, REGISTRY.ops[op]
        types = {k: program.declared[t].type for k, t in operands.items()}
        attrs = {**rules.attrs, **attrs}
        try:
            wanted = rules.infer(Node(self.name, op, types, attrs))
        except GraphError as error:
            self.refuse(str(error))
        written = {}
        for k, t in outputs.items():
            self._own("output", t)
            written[k] = self._output(t, wanted[k])
        program.calls.append(Call(op, self.name, {**operands, **written}, attrs, self.layer))
        return next(iter(written.values()))

    def _output(self, t: DTensor, wanted: TensorType) -> str:
        """The graph tensor that a write to a tensor makes."""
        program = self.program
        found = TensorType(t.dims, NAME_OF[t.dtype])
        if t.parts:
            self.refuse(f"output {t} is fused of weights and cannot be written")
        if t.name in program.attached:
            if found != wanted:
                self.refuse(f"output must be {wanted}; found {t}")
            return self._declare_attached(t)
        # Which token is largest is kept as indices in int32 beside values in float32, whatever was asked for.
        free = wanted.dtype == "int32" or (wanted.dtype == "float32" and self.method == "argmax_partial_layer")
        if found.bytes // _item(found) != wanted.bytes // _item(wanted) or (not free and found != wanted):
            self.refuse(f"output must be {wanted}; found {t}")
        name = _unique(self.prefix + stem_of(t), program.declared)
        program.value[t.name] = name
        return program.declare(Tensor(name, wanted.shape, wanted.dtype, "activation"))

    def linear(
        self, x: DTensor, weight: DTensor, output: DTensor, more: Mapping[str, DTensor], attrs: Mapping[str, Any]
    ) -> None:
        """A linear with what is fused into it; the output's dtype may differ from the weight's."""
        operands = {"x": self.read("input", x), "weight": self.read("weight", weight)}
        operands |= {k: self.read({"norm_weight": "weight_norm"}.get(k, k), t) for k, t in more.items()}
        if output.dtype != weight.dtype:
            if NAME_OF[output.dtype] not in FLOATS:
                self.refuse(f"output must be {' or '.join(FLOATS)}; found {output}")
            attrs = {**attrs, "out_dtype": NAME_OF[output.dtype]}
        self.program.weight_of[self.operator("linear", operands, attrs, out=output)] = weight

    def silu_mul(self, x: DTensor, output: DTensor, groups: int | None) -> None:
        """silu(gate) · up of columns that alternate in `groups` runs each; None: in those of the weight they came from."""
        value = self.read("input", x)
        weight = self.program.weight_of.get(value)
        fused = weight.num_groups if weight is not None and weight.parts else None
        if groups is None:
            groups = fused or 1
        width = output.dims[-1]
        if output.num_dims != 2 or x.num_dims != 2 or x.dim(1) != 2 * width or width % groups:
            self.refuse(
                f"input must hold {groups} runs each of gate and up, {2 * width} columns in all; found {x}, {output}"
            )
        if weight is not None and fused not in (None, groups):
            self.refuse(f"gate and up are read in {groups} groups, but {weight.name} was fused in {fused}")
        attrs = {"gate_offset": 0, "up_offset": width // groups, "width": width, "groups": groups}
        self.operator("silu_mul", {"gate": value, "up": value}, attrs, out=output)


def stem_of(t: DTensor) -> str:
    """A tensor's name without the number of its layer."""
    return LAYER_OF_NAME.sub("", t.name, count=1) or t.name


def _is_grid(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 3 and all(isinstance(n, int) and n > 0 for n in value)


def _item(t: TensorType) -> int:
    return TensorType((1,), t.dtype).bytes


def _unique(name: str, taken: Any) -> str:
    return name if name not in taken else next(f"{name}_{i}" for i in count(2) if f"{name}_{i}" not in taken)
