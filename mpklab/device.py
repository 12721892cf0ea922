"""The CUDA device: compiling for it, loading, launching. cuda.core and torch's CUDA are touched only when called."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab import env
from mpklab.diagnosis import refused
from mpklab.errors import BuildError, EnvError, RunError, need_package

COMPILERS = ("nvrtc", "nvcc")
# Features that only one generation has are behind the `a` targets (bulk copies with hints, wgmma).
ARCHITECTURES = {(9, 0): "sm_90a", (10, 0): "sm_100a"}


def _cuda_core() -> Any:
    try:
        import cuda.core as core
    except ImportError as error:
        raise need_package("cuda-core", "the CUDA backend", "cuda") from error
    return core


def _driver() -> Any:
    _cuda_core()
    from cuda.bindings import driver

    return driver


def _check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a driver call, or RunError with the driver's own words."""
    status, *value = result
    driver = _driver()
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise RunError(f"{what} failed: {text.decode() if text else status}")
    return value[0] if value else None


def architecture() -> str:
    """The device at hand as a compiler names it, `sm_90a`."""
    import torch

    if not torch.cuda.is_available():
        raise EnvError("no CUDA device: torch.cuda.is_available() is false. `mpklab doctor` says what is missing")
    found = torch.cuda.get_device_capability()
    if found < (8, 0):
        raise EnvError(f"compute capability {found[0]}.{found[1]} is too old: the CUDA backend needs 8.0")
    return ARCHITECTURES.get(found, f"sm_{found[0]}{found[1]}")


@functools.cache
def compiler_version(compiler: str) -> str:
    """Name and version of "nvrtc" or "nvcc", for the cache key."""
    if compiler not in COMPILERS:
        raise EnvError(f"a CUDA compiler is one of {', '.join(COMPILERS)}, not {compiler!r}")
    if compiler == "nvcc":
        path = _nvcc()
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        return "nvcc " + (re.search(r"V([\d.]+)", text) or [text, text])[1]
    _cuda_core()
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"nvrtc {major}.{minor}"


def _nvcc() -> str:
    path = env.nvcc_path()
    if path is None:
        raise EnvError(
            'compiler="nvcc" was asked for, and there is no nvcc: install a CUDA toolkit, or use the default, nvrtc'
        )
    return path


def compile_options(compiler: str, arch: str) -> list[str]:
    """The options a source is compiled with, for the cache key."""
    if compiler == "nvcc":
        number = arch.removeprefix("sm_")
        return [f"-gencode=arch=compute_{number},code={arch}", "-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v", "-cubin"]
    return [
        f"--gpu-architecture={arch}",
        "--std=c++20",
        "--device-as-default-execution-space",
        "--generate-line-info",
        "--ptxas-options=-v",
    ]


def _include_folders() -> list[str]:
    """Ours, and those of the CUDA headers: beside the wheels that torch brings, or a toolkit's."""
    folders = [str(env.csrc_folder() / "include")]
    try:
        import nvidia
    except ImportError:
        return folders
    for root in nvidia.__path__:
        folders += [str(p) for p in sorted(Path(root).glob("*/include")) if (p / "cuda_runtime.h").exists()]
    return folders


def compile_cubin(text: str, arch: str, compiler: str, folder: Path) -> tuple[bytes, str]:
    """Cubin and log (registers, spills, shared memory); BuildError when the compiler refuses. `folder` keeps the files."""
    if compiler == "nvcc":
        line = [_nvcc(), *compile_options(compiler, arch), f"-I{env.csrc_folder() / 'include'}"]
        line += [str(folder / "kernel.cu"), "-o", str(folder / "nvcc.cubin")]
        done = subprocess.run(line, capture_output=True, text=True)
        log = " ".join(line) + "\n" + done.stdout + done.stderr
        if done.returncode:
            raise refused(log, " ".join(line), folder)
        return (folder / "nvcc.cubin").read_bytes(), log
    _cuda_core()
    from cuda.bindings import nvrtc

    options = [o.encode() for o in compile_options(compiler, arch)]
    options += [f"-I{folder}".encode() for folder in _include_folders()]
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    if int(status):
        raise BuildError(f"NVRTC would not take the source: {status}")
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    log = "nvrtc " + " ".join(o.decode() for o in options) + "\n"
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    if size > 1:
        words = b" " * size
        nvrtc.nvrtcGetProgramLog(program, words)
        log += words.decode(errors="replace").rstrip("\0 ")
    if int(status):
        nvrtc.nvrtcDestroyProgram(program)
        raise refused(log, log.splitlines()[0], folder)
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    binary = b" " * size
    nvrtc.nvrtcGetCUBIN(program, binary)
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    (folder / "kernel.ptx").write_bytes(ptx.rstrip(b"\0 "))
    nvrtc.nvrtcDestroyProgram(program)
    return binary, log


def resources(log: str) -> dict[str, int]:
    """Registers, spills and shared memory as ptxas told them; sizes in bytes."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "spill_store_bytes": r"(\d+) bytes spill stores",
        "spill_load_bytes": r"(\d+) bytes spill loads",
        "static_shared_bytes": r"(\d+) bytes smem",
    }
    return {name: int(m[1]) for name, pattern in patterns.items() if (m := re.search(pattern, log))}


def disassembled(file: Path) -> str:
    """SASS of a cubin; EnvError where the toolkit's cuobjdump is missing."""
    try:
        return subprocess.run(
            ["cuobjdump", "--dump-sass", str(file)], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError as error:
        raise EnvError(
            "the machine code is shown by cuobjdump, which is not on PATH: it comes with a CUDA toolkit"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RunError(f"cuobjdump could not read {file}: {error.stderr}") from error


@dataclass(frozen=True)
class Loaded:
    """A kernel on the device, and the shared memory that it takes beside the ring."""

    function: Any
    static_shared_bytes: int


@functools.cache
def _module(file: Path) -> Any:
    """A cubin in torch's context."""
    import torch

    torch.cuda.current_stream()
    torch.zeros(1, device="cuda")  # makes the context current
    return _check(_driver().cuModuleLoadData(file.read_bytes()), f"loading {file}")


@functools.cache
def load(file: Path, dynamic_bytes: int, name: str = "mpk_kernel") -> Loaded:
    """Load a kernel of a cubin and allow it the shared memory it wants; RunError with needed and free bytes."""
    import torch

    driver, module = _driver(), _module(file)
    function = _check(driver.cuModuleGetFunction(module, name.encode()), f"finding {name}")
    attribute = driver.CUfunction_attribute
    asked = driver.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
    static = int(_check(asked, "asking for a kernel's attributes"))
    limit = int(torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin)
    if static + dynamic_bytes > limit:
        raise RunError(
            f"the kernel needs {static} + {dynamic_bytes} bytes of shared memory, an SM gives {limit}: "
            "use fewer pages (lower(…, pages=…))"
        )
    _check(
        driver.cuFuncSetAttribute(function, attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic_bytes),
        "raising the shared memory limit",
    )
    return Loaded(function, static)


def plain_kernel(cubin: bytes, name: str) -> Any:
    """A call `kernel((blocks, threads), *integers)` for a kernel of 64-bit arguments, on torch's current stream."""
    import torch

    torch.zeros(1, device="cuda")
    driver = _driver()
    module = _check(driver.cuModuleLoadData(cubin), f"loading {name}")
    function = _check(driver.cuModuleGetFunction(module, name.encode()), f"finding {name}")

    def launch(shape: tuple[int, int], *arguments: int) -> None:
        values = [ctypes.c_uint64(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = torch.cuda.current_stream().cuda_stream
        where = (shape[0], 1, 1, shape[1], 1, 1, 0, stream, ctypes.addressof(pointers), 0)
        _check(driver.cuLaunchKernel(function, *where), f"launching {name}")

    return launch


def has_time_limit() -> bool:
    """Whether the driver stops kernels on torch's device that run for seconds, because it drives a display."""
    import torch

    driver = _driver()
    wanted = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT
    number = _check(driver.cuDeviceGet(torch.cuda.current_device()), "asking for the device")
    return bool(_check(driver.cuDeviceGetAttribute(wanted, number), "asking for the kernel time limit"))


def make_room(needed_bytes: int, what: str, instead: str) -> None:
    """RunError with the bytes needed and free where torch's device cannot hold so much more; `instead` would take less."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch's own, to be given out again
    if needed_bytes > free:
        raise RunError(
            f"{what} would take {needed_bytes:,} bytes on the GPU, where {free:,} are free: free some (other notebooks hold "
            f"theirs until their kernels end), or choose {instead}"
        )


def clock_hz() -> float:
    """The SM clock's highest rate; the anchors in every lane give the real one."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return float(getattr(properties, "clock_rate", 0) or 1_980_000) * 1e3


def facts() -> dict[str, Any]:
    """Driver, clocks, power cap and throttle reasons of torch's device, for the stamp; what nvidia-smi does not say is
    left out. nvidia-smi counts all GPUs, torch those it may see, so the device is asked for by its UUID."""
    import torch

    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    fields = (
        "driver_version",
        "clocks.sm",
        "clocks.mem",
        "power.limit",
        "temperature.gpu",
        "clocks_event_reasons.active",
    )
    line = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=False)) if done.returncode == 0 else {}


class Flight:
    """One launch under way on torch's current stream: a cooperative launch of one block per worker."""

    def __init__(self, file: Path, launch: npt.NDArray[np.void], workers: int, settings: Mapping[str, int]):
        import torch

        driver = _driver()
        dynamic = settings["page_bytes"] * settings["pages"]
        kernel = load(file, dynamic)
        threads = 32 * (settings["consumer_warps"] + 1)
        per_sm = int(
            _check(
                driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(kernel.function, threads, dynamic),
                "asking for the occupancy",
            )
        )
        sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        if per_sm < 1 or workers > sms:
            raise RunError(
                f"{workers} workers of {threads} threads and {dynamic + kernel.static_shared_bytes} bytes of shared "
                f"memory cannot all be resident on {sms} SMs (one worker an SM): assign(…, workers={sms})"
            )
        self._launch = launch
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream()
        torch.cuda.synchronize()  # tables and inputs are in place, and no other kernel holds an SM
        self._begin.record(stream)
        parameters = (ctypes.c_void_p * 1)(launch.ctypes.data)
        _check(
            driver.cuLaunchCooperativeKernel(
                kernel.function, workers, 1, 1, threads, 1, 1, dynamic, stream.cuda_stream, ctypes.addressof(parameters)
            ),
            "launching the kernel",
        )
        self._end.record(stream)
        self.seconds = 0.0

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so long."""
        until = time.perf_counter() + seconds
        while not self._end.query():
            if time.perf_counter() >= until:
                return False
            time.sleep(5e-5)
        return True

    def finish(self) -> None:
        """Wait for the end and take the time; RunError when the kernel crashed."""
        import torch

        try:
            self._end.synchronize()
        except RuntimeError as error:
            raise RunError(f"the kernel crashed on the device: {error}") from error
        self.seconds = self._begin.elapsed_time(self._end) / 1e3
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class Grid:
    """One operator as a launch of its own: its kernel, blocks, tasks of each block, how many bytes into `tasks` they
    begin, and the slots of its operands."""

    kernel: str
    blocks: int
    each: int
    tasks_at: int
    slots: tuple[int, ...]


class GraphFlight(Flight):
    """One launch under way as a CUDA graph that holds a kernel for every operator and is replayed for every iteration.

    From sm_90 on a kernel may start while the one before it still runs (programmatic dependent launch); the first of
    an iteration waits for the whole one before. What was asked for is in the stream at once, so an abort takes as long.
    """

    def __init__(self, file: Path, launch: npt.NDArray[np.void], grids: Sequence[Grid], settings: Mapping[str, int]):
        import torch

        driver = _driver()
        side = torch.cuda.Stream()  # the default stream takes no part in graphs
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver.cuStreamBeginCapture(side.cuda_stream, mode), "beginning a graph")
        try:
            for i, grid in enumerate(grids):
                self._add(file, launch, grid, settings, side.cuda_stream, overlaps=i > 0)
        except BaseException:
            driver.cuStreamEndCapture(side.cuda_stream)  # what went wrong before says more than what this says
            raise
        self._graph = _check(driver.cuStreamEndCapture(side.cuda_stream), "ending a graph")
        self._steps = _check(driver.cuGraphInstantiate(self._graph, 0), "making a graph")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream()
        _check(driver.cuGraphUpload(self._steps, stream.cuda_stream), "sending a graph to the device")
        torch.cuda.synchronize()
        self._begin.record(stream)
        for _ in range(int(launch["iterations"][0])):
            _check(driver.cuGraphLaunch(self._steps, stream.cuda_stream), "launching a graph")
        self._end.record(stream)
        self.seconds = 0.0

    def _add(
        self,
        file: Path,
        launch: npt.NDArray[np.void],
        grid: Grid,
        settings: Mapping[str, int],
        stream: int,
        overlaps: bool,
    ) -> None:
        driver = _driver()
        dynamic = settings["page_bytes"] * settings["pages"]
        mine = launch.copy()
        mine["tasks"] += grid.tasks_at
        mine["n_workers"], mine["n_tasks"] = grid.blocks, grid.blocks * grid.each
        mine["iterations"], mine["steps"] = 1, 0
        slots = np.array(grid.slots, np.uint16)
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = int(overlaps)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid.blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = 32 * (settings["consumer_warps"] + 1), 1, 1
        config.sharedMemBytes, config.hStream = dynamic, stream
        config.attrs, config.numAttrs = [attribute], 1
        function = load(file, dynamic, grid.kernel).function
        parameters = (ctypes.c_void_p * 2)(mine.ctypes.data, slots.ctypes.data)
        _check(driver.cuLaunchKernelEx(config, function, ctypes.addressof(parameters), 0), "adding a kernel to a graph")

    def finish(self) -> None:
        super().finish()
        driver = _driver()
        _check(driver.cuGraphExecDestroy(self._steps), "freeing a graph")
        _check(driver.cuGraphDestroy(self._graph), "freeing a graph")
