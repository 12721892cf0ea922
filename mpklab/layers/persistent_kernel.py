"""`PersistentKernel`: Mirage's class with Mirage's methods; each layer is handed on as operators of a graph.

The names, arguments and meanings are those of the Mirage project's `persistent_kernel.py` and of the demo published with it
(`demo/qwen3/demo.py`). What a layer's tiles are follows `grid_dim` where one is given, and the machine where it is left
out. `block_dim` is taken and not used: a block's shape is the plan's.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch

from mpklab.codegen import emit
from mpklab.errors import GraphError, RunError, suggest
from mpklab.graph import Graph
from mpklab.imports.interleaved import to_mirage
from mpklab.imports.mirage import task_type
from mpklab.layers.program import META, Layer, Program, stem_of
from mpklab.layers.tensors import DTensor, attached, between_layers, meta, profiler_words
from mpklab.machine import Machine
from mpklab.profile import Profile
from mpklab.run import Kernel, Session, build
from mpklab.schedule import Schedule, assign
from mpklab.tasks import Plan, TaskGraph, lower
from mpklab.verifier import verify

EPS = 1e-6  # what Mirage's tasks are compiled with
LENGTH = 512  # tokens, where the program does not say
RECORDED = 2  # the level that a profiler tensor asks for
# Constructor arguments of Mirage's later API, whose caches are paged and whose requests come in batches.
LATER = (
    "mode", "max_num_batched_requests", "max_num_batched_tokens", "max_num_pages", "page_size", "trace_name",
    "use_cutlass_kernel", "test_mode", "pinned_ring_capacity",
)  # fmt: skip

Grid = tuple[int, int, int]
P = ParamSpec("P")


def get_configurations_from_gpu(rank: int = 0) -> tuple[int, int]:
    """Workers and schedulers for this GPU, as Mirage's demos ask: every SM works, none is given to schedulers."""
    return Machine.detect().workers, 0


def _checked(method: Callable[P, None]) -> Callable[P, None]:
    """A layer's method, that says by the layer's name what it was called with wrongly."""
    signature = inspect.signature(method)

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        program: Program = args[0]._program  # type: ignore[attr-defined]
        where = f"{method.__name__} (operator {len(program.calls)} of the program)"
        for name in kwargs:
            if name not in signature.parameters:
                raise GraphError(f"{where} takes no {name!r}: {suggest(name, list(signature.parameters)[1:])}")
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise GraphError(f"{where}: {error}") from None
        for name, value in given.items():
            wanted = str(signature.parameters[name].annotation)
            optional = wanted.endswith("| None") and value is None
            if wanted.startswith("DTensor") and not optional and not isinstance(value, DTensor):
                raise GraphError(f"{where}: {name} must be a tensor of this kernel, not {type(value).__name__}")
        method(*args, **kwargs)

    return call


class PersistentKernel:
    """A megakernel from layers, in the API of Mirage Persistent Kernel.

    `meta_tensors` is `[step, tokens]`, on the device the kernel is to run on (CPU or CUDA): step int32[1] and tokens
    int64[1, n]. A call decodes from `tokens[0, step[0]]` on, writes every new token to `tokens`, and leaves in `step[0]`
    the place of the last one: the first equal to `eos_token_id`, or number `max_seq_length` - 1 (512 or the whole of
    tokens where none is given).

    `num_workers` is the most workers that are used (SMs or CPU threads, never more than there are); schedulers are not
    needed, and their numbers are ignored. With a `profiler_tensor`, uint64 or int64, every call is recorded into
    `.profile`, and written to the tensor in the layout that Mirage's exporters read (`to_mirage`); what the tensor has no
    room for is left out of it with a warning. `machine`, mpklab's own, names another machine than the tensors' device.

    GraphError for what a program cannot be: the message names the layer.
    """

    def __init__(
        self,
        world_size: int = 1,
        mpi_rank: int = 0,
        num_workers: int | None = None,
        num_local_schedulers: int = 0,
        num_remote_schedulers: int = 0,
        max_seq_length: int | None = None,
        eos_token_id: int | Sequence[int] | None = -1,
        meta_tensors: Sequence[torch.Tensor] = (),
        profiler_tensor: torch.Tensor | None = None,
        spec_decode_config: Any = None,
        *,
        machine: Machine | None = None,
        **unknown: Any,
    ) -> None:
        later = [name for name in LATER if name in unknown]
        if later:
            raise GraphError(
                f"PersistentKernel takes no {', '.join(later)}: those belong to Mirage's later API of batched requests with "
                "paged caches, and this is the one with meta_tensors=[step, tokens] and a cache for each layer"
            )
        for name in unknown:
            known = [n for n in PersistentKernel.__init__.__annotations__ if n not in ("unknown", "return")]
            raise GraphError(f"PersistentKernel takes no {name!r}: {suggest(name, known)}")
        if (world_size, mpi_rank) != (1, 0):
            raise GraphError(
                f"PersistentKernel runs on one device: world_size={world_size} and mpi_rank={mpi_rank} must be 1 and 0"
            )
        if spec_decode_config is not None:
            raise GraphError("PersistentKernel has no speculative decoding: leave out spec_decode_config")
        step, tokens = meta(meta_tensors)
        max_seq_length = min(LENGTH, tokens.shape[1]) if max_seq_length is None else max_seq_length
        if not isinstance(max_seq_length, int) or not 1 < max_seq_length <= tokens.shape[1]:
            raise GraphError(
                f"PersistentKernel: max_seq_length must be from 2 to the {tokens.shape[1]} places of tokens, not "
                f"{max_seq_length!r}"
            )
        ends = list(eos_token_id or ()) if not isinstance(eos_token_id, int) else [eos_token_id]
        if not all(isinstance(end, int) for end in ends):
            raise GraphError(f"PersistentKernel: eos_token_id is a token, several, or None, not {eos_token_id!r}")
        eos = [end for end in ends if end >= 0] or [-1]
        self.machine = machine or _machine(step.device, num_workers)
        self.profiler_tensor = profiler_tensor
        self._words = None if profiler_tensor is None else profiler_words(profiler_tensor, self.machine.workers)
        self.kernel: Kernel | None = None
        self.kn_graph = TaskGraphs(self)
        self._program = Program(step, tokens, max_seq_length, eos)
        self._session: Session | None = None

    # --- tensors ---

    def attach_input(self, torch_tensor: torch.Tensor, name: str | None = None) -> DTensor:
        """A tensor of the caller's, row-major, used where it lies: a weight, a cache, or what a layer writes to."""
        program = self._program
        where = program.fresh("attach_input", name)
        handle = program.add(attached(where, str(name), torch_tensor, program.step.device))
        program.attached[handle.name] = torch_tensor.detach()
        return handle

    def new_tensor(
        self,
        dims: Sequence[int],
        strides: Sequence[int] | None = None,
        dtype: torch.dtype | str = torch.bfloat16,
        name: str | None = None,
        io_category: str = "cuda_tensor",
    ) -> DTensor:
        """A tensor between layers, "cuda_tensor" or "nvshmem_tensor" alike.

        It lives inside the kernel, and every write makes a value of its own, so that one name used in all layers orders
        nothing. Values and indices of argmax are kept in float32 and int32, whatever the dtype.
        """
        where = self._program.fresh("new_tensor", name)
        return self._program.add(between_layers(where, str(name), dims, strides, dtype, io_category))

    def fuse_tensors(
        self, inputs: Sequence[DTensor], fused_dim: int = 0, num_groups: int = 1, name: str | None = None
    ) -> DTensor:
        """Attached weights [n, k] as one [Σn, k], addressed where they lie: the first of `num_groups` shares of each one's
        rows, then the second of each, and so on."""
        program = self._program
        where = program.fresh("fuse_tensors", name)
        if fused_dim != 0:
            raise GraphError(f"{where}: only rows can be fused, fused_dim=0, not {fused_dim!r}")
        if not inputs or not isinstance(num_groups, int) or num_groups < 1:
            raise GraphError(f"{where}: needs at least one tensor and one group, not {len(inputs)} and {num_groups!r}")
        first = inputs[0]
        for t in inputs:
            if not isinstance(t, DTensor):
                raise GraphError(f"{where}: inputs must be tensors of this kernel, not {type(t).__name__}")
            if (
                program.handles.get(t.name) is not t
                or t.name not in program.attached
                or t.num_dims != 2
                or (t.dims[1], t.dtype) != (first.dims[1], first.dtype)
            ):
                raise GraphError(f"{where}: inputs must be attached matrices of one width and dtype; found {t}")
            if t.dims[0] % num_groups:
                raise GraphError(f"{where}: the {t.dims[0]} rows of {t.name} cannot be shared by {num_groups} groups")
        dims = (sum(t.dims[0] for t in inputs), first.dims[1])
        return program.add(DTensor(str(name), dims, first.dtype, tuple(t.name for t in inputs), num_groups))

    def shuffle_tensors(
        self, inputs: Sequence[DTensor], shuffled_dim: int = 0, num_groups: int = 1, name: str | None = None
    ) -> DTensor:
        """The rows that Mirage would copy into such an order, which is that of `fuse_tensors`: nothing is copied here."""
        return self.fuse_tensors(inputs, shuffled_dim, num_groups, name)

    # --- layers ---

    @_checked
    def embed_layer(
        self,
        input: DTensor | None,
        weight: DTensor,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
        input_source: int = 0,
    ) -> None:
        """output[1, h] = weight[tokens[0, step], :]; `input` is not read. grid_dim.x divides h."""
        layer = Layer(self._program, "embed_layer", stem_of(weight), weight)
        if input_source:
            layer.refuse(
                "input_source=1 is for speculative decoding; the token is read from meta_tensors, input_source=0"
            )
        layer.grid(grid_dim, weight.dims[-1], "columns of weight")
        token = self._program.declare_meta("token", (1,), "int32")
        layer.operator("embedding", {"token": token, "weight": layer.read("weight", weight)}, {}, out=output)

    @_checked
    def rmsnorm_layer(
        self,
        input: DTensor,
        weight: DTensor,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
        *,
        eps: float = EPS,
    ) -> None:
        """output[b, h] = input / √(mean(input²) + eps) · weight[h]. grid_dim.x divides b."""
        layer = Layer(self._program, "rmsnorm_layer", stem_of(weight), weight)
        layer.grid(grid_dim, input.dims[0], "rows of input")
        operands = {"x": layer.read("input", input), "weight": layer.read("weight", weight)}
        layer.operator("rms_norm", operands, {"eps": eps}, out=output)

    @_checked
    def linear_layer(
        self, input: DTensor, weight: DTensor, output: DTensor, grid_dim: Grid | None = None, block_dim: Any = None
    ) -> None:
        """output[b, n] = input[b, k] · weight[n, k]ᵀ. grid_dim.x divides n, as in every layer with a linear."""
        layer = self._linear("linear_layer", weight, grid_dim)
        layer.linear(input, weight, output, {}, {})

    @_checked
    def rmsnorm_linear_layer(
        self,
        input: DTensor,
        weight_norm: DTensor,
        weight_linear: DTensor,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
        *,
        eps: float = EPS,
    ) -> None:
        """output[b, n] = rmsnorm(input[b, k]; weight_norm[k]) · weight_linear[n, k]ᵀ."""
        layer = self._linear("rmsnorm_linear_layer", weight_linear, grid_dim)
        layer.linear(input, weight_linear, output, {"norm_weight": weight_norm}, {"eps": eps})

    @_checked
    def linear_with_residual_layer(
        self,
        input: DTensor,
        weight: DTensor,
        residual: DTensor,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
    ) -> None:
        """output[b, n] = input[b, k] · weight[n, k]ᵀ + residual[b, n]."""
        layer = self._linear("linear_with_residual_layer", weight, grid_dim)
        layer.linear(input, weight, output, {"residual": residual}, {"epilogue": "residual"})

    @_checked
    def silu_mul_layer(
        self, input: DTensor, output: DTensor, grid_dim: Grid | None = None, block_dim: Any = None
    ) -> None:
        """output[b, n] = silu(gate) · up, of the columns of input[b, 2n]. grid_dim.x divides n.

        As in Mirage, a tile's gate is the first half of its columns and its up the second; so the weight behind the input
        is fused in grid_dim.x groups. Without a grid, in however many groups it was fused.
        """
        layer = Layer(self._program, "silu_mul_layer", "silu_mul", *self._before(input))
        layer.grid(grid_dim, output.dims[-1], "columns of output")
        layer.silu_mul(input, output, grid_dim[0] if grid_dim else None)

    @_checked
    def silu_mul_linear_with_residual_layer(
        self,
        input: DTensor,
        weight: DTensor,
        residual: DTensor,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
    ) -> None:
        """output[b, n] = (silu(gate) · up)[b, k] · weight[n, k]ᵀ + residual[b, n]; input[b, 2k] is gate, then up.

        Two operators: silu_mul, which may move into the linear before it, and the linear.
        """
        layer = self._linear("silu_mul_linear_with_residual_layer", weight, grid_dim)
        gated = DTensor(f"{layer.name}.gated", (input.dims[0], weight.dims[-1]), input.dtype)
        self._program.add(gated)
        layer.within("silu_mul").silu_mul(input, gated, 1)
        layer.linear(gated, weight, output, {"residual": residual}, {"epilogue": "residual"})

    @_checked
    def attention_layer(
        self,
        input: DTensor,
        k_cache: DTensor,
        v_cache: DTensor,
        q_norm: DTensor | None,
        k_norm: DTensor | None,
        cos_pos_embed: DTensor | None,
        sin_pos_embed: DTensor | None,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
        *,
        eps: float = EPS,
    ) -> None:
        """One token at position step: output[1, heads · d] from input[1, (heads + 2 · kv) · d].

        The columns of input are those of each KV head one after another, its queries, its key, its value: those of a
        weight fused in as many groups as there are KV heads. Caches [1, rows, kv, d], of at least max_seq_length rows, are
        read and appended to where they lie. q_norm and k_norm [d], or None; cos and sin [rows, d], or None for no
        rotation. grid_dim is (1, kv, 1).
        """
        program = self._program
        layer = Layer(program, "attention_layer", "attention", k_cache)
        if k_cache.num_dims != 4 or k_cache.dims != v_cache.dims or k_cache.dims[0] != 1:
            layer.refuse(
                f"k_cache and v_cache must be alike, [1, rows, kv heads, head_dim]; found {k_cache}, {v_cache}"
            )
        _, rows, kv, d = k_cache.dims
        if rows < program.max_seq_length:
            layer.refuse(f"the {rows} rows of k_cache are fewer than max_seq_length={program.max_seq_length}")
        heads, left = divmod(output.dims[-1], d)
        if left or heads % kv or input.dims[-1] != (heads + 2 * kv) * d:
            layer.refuse(
                f"output must hold heads of {d} columns, shared evenly by {kv} KV heads, and input their queries and "
                f"{2 * kv} keys and values; found {input}, {output}"
            )
        if grid_dim is not None and tuple(grid_dim) != (1, kv, 1):
            layer.refuse(f"grid_dim must be (1, {kv}, 1), a tile for each KV head, not {grid_dim!r}")
        x = layer.read("input", input)
        weight = program.weight_of.get(x)
        if weight is not None and weight.parts and weight.num_groups != kv:
            layer.refuse(
                f"input's columns must lie by KV head ({kv}), but {weight.name} was fused in {weight.num_groups} groups"
            )
        operands = {"q": x, "k": x, "v": x}
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                operands[name] = layer.read(name, norm)
        operands["rope"] = layer.rope(cos_pos_embed, sin_pos_embed, d)
        operands["k_cache"], operands["v_cache"] = layer.cache("k_cache", k_cache), layer.cache("v_cache", v_cache)
        operands["position"] = program.declare_meta("step", (1,), "int32", program.step)
        group = heads // kv
        offsets = {"k_offset": group * d, "v_offset": (group + 1) * d, "group_stride": (group + 2) * d}
        if grid_dim is not None:
            program.grids[layer.name] = kv
        layer.operator("attention", operands, {"heads": heads, "eps": eps, **offsets}, out=output)

    @_checked
    def elementwise_add_layer(
        self, input_a: DTensor, input_b: DTensor, output: DTensor, grid_dim: Grid | None = None, block_dim: Any = None
    ) -> None:
        """output = input_a + input_b. grid_dim.x divides their rows; its tiles are as many, but cut by columns."""
        layer = Layer(self._program, "elementwise_add_layer", "elementwise_add", *self._before(input_b))
        layer.grid(grid_dim, input_a.dims[0], "rows of input_a")
        operands = {"a": layer.read("input_a", input_a), "b": layer.read("input_b", input_b)}
        layer.operator("add", operands, {}, out=output)

    @_checked
    def allreduce_layer(
        self,
        input: DTensor,
        buffer: DTensor | None,
        output: DTensor,
        grid_dim: Grid | None = None,
        block_dim: Any = None,
    ) -> None:
        """The sum over all devices. There is one, so output is input from here on and no task runs; buffer is not used."""
        layer = Layer(self._program, "allreduce_layer", "allreduce", *self._before(input))
        layer.grid(grid_dim, input.dims[-1], "columns of input", keep=False)
        if (input.dims, input.dtype) != (output.dims, output.dtype) or output.name in self._program.attached:
            layer.refuse(f"output must be a new tensor like input; found {input}, {output}")
        self._program.value[output.name] = layer.read("input", input)

    @_checked
    def argmax_partial_layer(
        self, input: DTensor, output: tuple[DTensor, DTensor], grid_dim: Grid | None = None, block_dim: Any = None
    ) -> None:
        """The largest of each of p pieces of input[b, n], the first among equals: output is (value[b, p], index[b, p]).
        grid_dim.x is p."""
        layer = Layer(self._program, "argmax_partial_layer", "argmax_partial")
        value, index = _pair(layer, "output", output)
        layer.grid(grid_dim, input.dims[-1], "columns of input")
        if grid_dim is not None and value.dims[-1] != grid_dim[0]:
            layer.refuse(f"output must have a column for each of the {grid_dim[0]} tiles; found {value}")
        attrs = {"parts": value.dims[-1]}
        layer.operator("argmax_partial", {"x": layer.read("input", input)}, attrs, value=value, index=index)

    @_checked
    def argmax_reduce_layer(
        self, input: tuple[DTensor, DTensor], output: DTensor, grid_dim: Grid | None = None, block_dim: Any = None
    ) -> None:
        """The largest of the pieces: output[1, 1]. It is the next token, written to tokens[0, step + 1] too."""
        layer = Layer(self._program, "argmax_reduce_layer", "argmax_reduce")
        value, index = _pair(layer, "input", input)
        layer.grid(grid_dim, 1, "rows of input")
        if self._program.next_token is not None:
            layer.refuse("the program has an argmax_reduce_layer already, and one token follows another")
        operands = {"value": layer.read("input", value), "index": layer.read("input", index)}
        self._program.next_token = layer.operator("argmax_reduce", operands, {}, out=output)

    def _linear(self, method: str, weight: DTensor, grid_dim: Grid | None) -> Layer:
        layer = Layer(self._program, method, stem_of(weight), weight)
        layer.grid(grid_dim, weight.dims[0], "rows of weight")
        return layer

    def _before(self, t: DTensor) -> tuple[DTensor, ...]:
        """The weight behind a tensor, whose name tells which layer of the model it belongs to."""
        weight = self._program.weight_of.get(self._program.value.get(t.name, ""))
        return () if weight is None else (weight,)

    # --- from program to kernel ---

    @property
    def graph(self) -> Graph:
        """The graph that runs (`graph.parent` leads back to the program's own); before `compile`, the program's own."""
        return self.kernel.graph if self.kernel is not None else self._program.graph()

    @property
    def tasks(self) -> TaskGraph:
        """The tasks that run; before `compile`, those that would."""
        return self.kernel.schedule.tasks if self.kernel is not None else self._lowered(None)

    @property
    def schedule(self) -> Schedule:
        """The schedule that runs."""
        return self._compiled("schedule").schedule

    @property
    def profile(self) -> Profile | None:
        """What the latest recorded call left, or None."""
        return self._compiled("profile").last_profile

    def compile(
        self,
        output_dir: str | Path | None = None,
        *,
        plan: Plan | None = None,
        mode: str = "static",
        policy: Any = None,
        compiler: str | None = None,
        **handout: Any,
    ) -> Kernel:
        """Lower, assign, verify and build; returns mpklab's Kernel, which stays as `.kernel`.

        Grids that were given are kept in the plan, and passes that would undo one are left out. With `output_dir` the
        entry file and the task graph are written there too. The other keywords are mpklab's: see lower, assign (which takes
        `handout`, such as dynamic=["attention"], too) and build.
        """
        if self.kernel is not None:
            raise GraphError("compile: this program is compiled already; make a new PersistentKernel for another")
        for name in handout:
            known = {*inspect.signature(assign).parameters, *inspect.signature(self.compile).parameters}
            if name not in known:
                raise GraphError(f"compile takes no {name!r}: {suggest(name, known - {'tasks', 'handout'})}")
        program, tasks = self._program, self._lowered(plan)
        tensors = tasks.graph.tensors
        outside = {n: t for n, t in program.memory.items() if n in tensors}
        schedule = verify(assign(tasks, mode=mode, policy=policy, **handout))
        weights = {n: t for n, t in outside.items() if tensors[n].role == "weight"}
        kernel = build(schedule, compiler=compiler, weights=weights)
        if output_dir is not None:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ("test.cu" if kernel.backend == "cuda" else "test.cpp")).write_text(kernel.source.text)
            (folder / "graph.json").write_text(json.dumps(tasks.graph.to_json()))
            tasks.save(folder / "tasks.npz")
        self._session = Session(kernel, {n: t for n, t in outside.items() if n not in weights})
        if program.next_token is not None:
            on = program.step.device
            ends = torch.tensor(program.eos, dtype=torch.int32, device=on)
            limit = torch.tensor([program.max_seq_length], dtype=torch.int32, device=on)
            self._session.bind({META + "eos": ends, META + "limit": limit})
        self.kernel = kernel
        return kernel

    def __call__(self, default_stream: Any = None, *, stream: Any = None, profile: Any = None) -> None:
        """Decode until an end of sequence or `max_seq_length`, and wait for it. A program without argmax_reduce_layer
        runs once.

        `default_stream`, or `stream`: a torch.cuda.Stream to run on instead of the current one. `profile`, mpklab's own: a
        recording level or a Window for this call. RunError where `step` leaves nothing to decode.
        """
        kernel = self._compiled("a run")
        if self._session is None:
            raise RunError("a run: the kernel was finalized; make a new PersistentKernel")
        default_stream = default_stream if default_stream is not None else stream
        level = profile if profile is not None else RECORDED if self._words is not None else 0
        on_gpu = default_stream is not None and self._program.step.device.type == "cuda"
        before = kernel.last_profile
        if on_gpu:  # what the caller has queued is there first: the prompt, the caches, where to go on
            default_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(default_stream) if on_gpu else nullcontext():
            try:
                self._session.launch(self._take_up(self._session), profile=level)
            finally:  # Ctrl-C leaves a recording too
                recorded = kernel.last_profile
                if self._words is not None and recorded is not None and recorded is not before:
                    self._write_words(recorded, self._words)

    def init_func(
        self,
        meta_ptrs: Sequence[Any],
        profiler_ptr: Any = 0,
        rank: int = 0,
        workers: int | None = None,
        local_schedulers: int = 0,
        remote_schedulers: int = 0,
        *more: Any,
    ) -> None:
        """Begin a new generation: forgets the last profile. Every call takes `step` and `tokens` as it finds them, so
        nothing else is to be reset; `meta_ptrs` (addresses, or the tensors) must be those that the kernel has.

        `profiler_ptr`: another profiler tensor from now on, or the address of the one that the kernel has; 0 for none.
        """
        kernel = self._compiled("init_func")
        own = [self._program.step.data_ptr(), self._program.tokens.data_ptr()]
        given = [p.data_ptr() if isinstance(p, torch.Tensor) else p for p in meta_ptrs]
        if given != own or rank != 0:
            raise RunError(
                f"init_func: meta_ptrs must be the addresses of the kernel's own step and tokens, {own}, at rank 0; found "
                f"{given} at rank {rank}. Write the new prompt into those tensors"
            )
        if isinstance(profiler_ptr, torch.Tensor):
            self._words, self.profiler_tensor = profiler_words(profiler_ptr, self.machine.workers), profiler_ptr
        elif not profiler_ptr:
            self._words = None
        elif self.profiler_tensor is not None and profiler_ptr == self.profiler_tensor.data_ptr():
            self._words = profiler_words(self.profiler_tensor, self.machine.workers)
        else:
            raise RunError(
                f"init_func: profiler_ptr {profiler_ptr!r} is not the address of the kernel's profiler_tensor, and an address "
                "alone does not say how long it is: give the tensor"
            )
        kernel.last_profile = None

    def finalize(self) -> None:
        """Let go of the kernel's own memory; caches, tokens, profile and graph stay. A second time does nothing."""
        self._session = None

    if not TYPE_CHECKING:  # a type checker shall know what there is

        def __getattr__(self, name: str) -> Any:
            raise _absent(name)

    def __repr__(self) -> str:
        what = str(self.kernel) if self.kernel is not None else f"{len(self._program.calls)} operators, not compiled"
        return f"PersistentKernel: {what}"

    def _write_words(self, profile: Profile, words: torch.Tensor) -> None:
        """The recording in Mirage's layout, as much as there is room for."""
        operators = self._compiled("a recording").graph.operators
        types = {o.name: task_type(o.op, o.operands) for o in operators}
        written, left_out = to_mirage(profile, words.numel(), types)
        words.view(torch.int64).copy_(torch.from_numpy(written.view(np.int64)))
        if left_out:
            warnings.warn(
                f"profiler_tensor has room for {words.numel()} words: the latest {left_out} spans are not in it; .profile "
                "has them",
                stacklevel=3,
            )

    def _lowered(self, plan: Plan | None) -> TaskGraph:
        graph = self._program.graph()
        self._program.check_memory(graph)
        return lower(graph, self.machine, plan or self._program.plan(graph, self.machine))

    def _compiled(self, what: str) -> Kernel:
        if self.kernel is None:
            raise RunError(f"{what}: the program is not compiled yet, call compile() first")
        return self.kernel

    def _take_up(self, session: Session) -> int:
        """Read the token at `step`, and say how many may follow it."""
        program = self._program
        if program.next_token is None:
            return 1
        position = int(program.step[0])
        left = program.max_seq_length - 1 - position
        if position < 0 or left < 1:
            raise RunError(
                f"step[0] is {position}: it must be from 0 to {program.max_seq_length - 2}, so that a token can follow "
                f"before max_seq_length={program.max_seq_length}"
            )
        token = int(program.tokens[0, position])
        graph = session.kernel.graph
        tables = [graph.tensors[o.operands["weight"]] for o in graph.operators if o.op == "embedding"]
        vocab = min((table.type.sizes[0] for table in tables), default=1 << 31)
        if not 0 <= token < vocab:
            raise RunError(f"tokens[0, {position}] is {token}, outside the vocabulary of {vocab}")
        session.tensors[META + "token"].fill_(token)
        session.tensors[META + "done"].fill_(0)
        return left


class UnknownLayer(GraphError, AttributeError):
    """A method of Mirage's that is not one of these layers, or a slip."""


def _absent(name: str) -> AttributeError:
    """What is raised for an attribute that a PersistentKernel does not have."""
    layers = [n for n in vars(PersistentKernel) if n.endswith("_layer")]
    if not name.endswith(("_layer", "_dispatcher", "_handler")):
        return AttributeError(f"'PersistentKernel' object has no attribute {name!r}")
    return UnknownLayer(
        f"PersistentKernel has no {name!r}, for its layers are those of a dense decoder with one sequence on one device: "
        f"{suggest(name, layers)}"
    )


class TaskGraphs:
    """What Mirage's demos ask a `kn_graph` for: the texts of a program's kernel and tasks."""

    def __init__(self, kernel: PersistentKernel):
        self._kernel = kernel

    def generate_task_graph(self, num_gpus: int = 1, my_gpu_id: int = 0) -> dict[str, str]:
        """`cuda_code`: the entry file. `json_file`: the graph, the plan and the machine, as `lower` takes them."""
        tasks = self._kernel.tasks
        head = {"graph": tasks.graph.to_json(), "plan": tasks.plan.to_json(), "machine": tasks.machine.to_json()}
        return {"cuda_code": emit(assign(tasks)).text, "json_file": json.dumps(head)}


def _machine(device: torch.device, workers: int | None) -> Machine:
    """The tensors' device, with at most so many workers."""
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise GraphError(f"PersistentKernel: num_workers must be a positive number, not {workers!r}")
    if device.type not in ("cpu", "cuda"):
        raise GraphError(f"PersistentKernel: step and tokens are on {device}; it runs on cpu and on cuda")
    make = Machine.cpu if device.type == "cpu" else Machine.cuda
    most = make().workers
    return make(min(workers or most, most))


def _pair(layer: Layer, argument: str, value: Any) -> tuple[DTensor, DTensor]:
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(isinstance(t, DTensor) for t in value):
        layer.refuse(f"{argument} must be two tensors, values and indices")
    return value[0], value[1]
