"""Programs written for Mirage Persistent Kernel's layer API, on mpklab's own graph, stages and backends."""

from mpklab.layers.persistent_kernel import PersistentKernel, get_configurations_from_gpu
from mpklab.layers.tensors import DTensor, bfloat16, float16, float32, int32, int64

__all__ = [
    "DTensor",
    "PersistentKernel",
    "bfloat16",
    "float16",
    "float32",
    "get_configurations_from_gpu",
    "int32",
    "int64",
]
