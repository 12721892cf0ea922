"""The tensors of a program in the layer API, and what they must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from mpklab.errors import GraphError, ProfileError, suggest
from mpklab.imports.interleaved import check_room
from mpklab.reference.execute import TORCH_DTYPES

bfloat16, float16, float32, int32, int64 = torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64

NAME_OF = {dtype: name for name, dtype in TORCH_DTYPES.items()}
IO_CATEGORIES = ("cuda_tensor", "nvshmem_tensor")
ALIGNMENT_BYTES = 16  # of what a GPU's bulk copies read


@dataclass(frozen=True, eq=False)
class DTensor:
    """A tensor of a program, as `attach_input`, `new_tensor` and `fuse_tensors` return it. A fused one has `parts`."""

    name: str
    dims: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[str, ...] = ()
    num_groups: int = 1

    @property
    def num_dims(self) -> int:
        """How many axes it has."""
        return len(self.dims)

    def dim(self, index: int) -> int:
        """The length of one axis."""
        return self.dims[index]

    def __str__(self) -> str:
        return f"{self.name} {NAME_OF[self.dtype]}[{'×'.join(map(str, self.dims))}]"


def attached(where: str, name: str, tensor: Any, device: torch.device) -> DTensor:
    """A caller's tensor; GraphError unless a kernel on that device can use it where it lies."""
    if not isinstance(tensor, torch.Tensor):
        raise GraphError(f"{where} takes a torch tensor, not {type(tensor).__name__}")
    if tensor.device != device:
        raise GraphError(
            f"{where}: the tensor is on {tensor.device}, but step and tokens are on {device}: move it with "
            f".to({str(device)!r})"
        )
    if tensor.dtype not in NAME_OF or not 1 <= tensor.ndim <= 4:
        shape = "×".join(map(str, tensor.shape))
        raise GraphError(
            f"{where}: a tensor has one to four axes of {', '.join(TORCH_DTYPES)}; this is {tensor.dtype}[{shape}]"
        )
    if not tensor.is_contiguous():
        raise GraphError(f"{where}: the strides {tensor.stride()} are not those of rows one after another")
    if tensor.device.type == "cuda" and tensor.data_ptr() % ALIGNMENT_BYTES:
        raise GraphError(f"{where}: a tensor on a GPU must begin at a multiple of {ALIGNMENT_BYTES} bytes")
    return DTensor(name, tuple(tensor.shape), tensor.dtype)


def between_layers(
    where: str, name: str, dims: Sequence[int], strides: Sequence[int] | None, dtype: Any, io_category: str
) -> DTensor:
    """A tensor that lives inside the kernel."""
    if io_category not in IO_CATEGORIES:
        raise GraphError(f"{where}: unknown io_category {io_category!r}: {suggest(str(io_category), IO_CATEGORIES)}")
    kind = TORCH_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if kind not in NAME_OF:
        raise GraphError(f"{where}: dtype must be one of {', '.join(TORCH_DTYPES)}, not {dtype!r}")
    sizes = tuple(dims)
    if not sizes or not all(isinstance(d, int) and d > 0 for d in sizes):
        raise GraphError(f"{where}: dims must be positive whole numbers, not {dims!r}")
    dense = tuple(prod(sizes[i + 1 :]) for i in range(len(sizes)))
    if strides is not None and tuple(strides) != dense:
        raise GraphError(f"{where}: strides must be those of rows one after another, {dense}, not {tuple(strides)}")
    return DTensor(name, sizes, kind)


def profiler_words(tensor: Any, workers: int) -> torch.Tensor:
    """The tensor as words that Mirage's profiler layout is written to; GraphError for what cannot hold it."""
    where = "PersistentKernel: profiler_tensor is a dense tensor of uint64 or int64, or None"
    if not isinstance(tensor, torch.Tensor):
        raise GraphError(f"{where}, not {type(tensor).__name__}")
    if tensor.dtype not in (torch.uint64, torch.int64) or not tensor.is_contiguous():
        raise GraphError(f"{where}; this is {tensor.dtype} with strides {tensor.stride()}")
    try:
        check_room(workers, tensor.numel())
    except ProfileError as error:
        raise GraphError(f"PersistentKernel: profiler_tensor: {error}") from None
    return tensor.detach().view(-1)


def meta(tensors: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """step and tokens, out of `meta_tensors`."""
    where = "PersistentKernel: meta_tensors must be the list [step, tokens]"
    if not isinstance(tensors, list | tuple) or len(tensors) != 2:
        what = f"{len(tensors)} of them" if isinstance(tensors, list | tuple) else type(tensors).__name__
        raise GraphError(f"{where}, not {what}")
    for name, t, dtype, shape in (("step", tensors[0], int32, "1"), ("tokens", tensors[1], int64, "1×n")):
        fits = isinstance(t, torch.Tensor) and t.dtype == dtype and t.is_contiguous() and t.ndim == 1 + ("×" in shape)
        if not fits or t.shape[0] != 1:
            found = f"{t.dtype}[{'×'.join(map(str, t.shape))}]" if isinstance(t, torch.Tensor) else type(t).__name__
            raise GraphError(f"{where}: {name} is {NAME_OF[dtype]}[{shape}], dense, not {found}")
    step, tokens = tensors
    if step.device != tokens.device:
        raise GraphError(f"{where} on one device, not on {step.device} and {tokens.device}")
    return step, tokens
