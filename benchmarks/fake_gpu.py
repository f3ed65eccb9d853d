"""A GPU that is not there, so that what runs on one can be tried without it.

`FakeGpu` has the two clocks that the benchmarks depend on: the host's, and the time at which the
device will have done what is queued. `pretend` puts it in the place of `torch.cuda`. Inside,
tensors "on" the GPU lie in the host's memory and say that they are on cuda:0, and katlib's CUDA
kernels run in katlib.cuda.emulator, so that every figure has a right value beside a meaningless
time. It needs g++.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import timing
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import katlib.cuda
from katlib import cpu
from katlib.cuda import jit
from katlib.cuda.emulator import emulation

ROOT = Path(__file__).resolve().parents[1]
REHEARSAL = ROOT / "build/rehearsal"
NAME = "Fake GPU F1"
CAPABILITY = (9, 0)
CYCLES_PER_SECOND = 1.5e9

# what every operation and every launch takes on the device
OPERATION_SECONDS = 2e-6


class FakeGpu:
    """A device that works through its queue while the host goes on.

    Args:
        clock: the host's seconds. By default no time passes on the host but by `keep_host`.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.skipped = 0.0
        # when the device will have done what is queued now
        self.free_at = 0.0
        self.capturing = False

    def now(self) -> float:
        return self.clock() + self.skipped

    def keep_host(self, seconds: float) -> None:
        """Lets time pass on the host."""
        self.skipped += seconds

    def queue(self, seconds: float = OPERATION_SECONDS) -> None:
        """Queues work that takes the device so long."""
        if not self.capturing:
            self.free_at = max(self.free_at, self.now()) + seconds

    def sleep(self, cycles: int) -> None:
        self.queue(cycles / CYCLES_PER_SECOND)

    def synchronize(self, device: object = None) -> None:
        self.refuse_in_capture("synchronize")
        self.keep_host(max(0.0, self.free_at - self.now()))

    def refuse_in_capture(self, what: str) -> None:
        if self.capturing:
            raise RuntimeError(f"CUDA error: {what} is not permitted when the stream is capturing")

    def event(self, enable_timing: bool = False) -> "FakeEvent":
        return FakeEvent(self)

    def graph(self) -> "FakeGraph":
        return FakeGraph(self)

    @contextlib.contextmanager
    def capture(self, graph: "FakeGraph", pool: object = None, stream: object = None):
        """Stands in for `torch.cuda.graph`."""
        self.synchronize()
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        graph.is_captured = True


class FakeEvent:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.seconds = float("nan")

    def record(self, stream: object = None) -> None:
        self.seconds = max(self.gpu.free_at, self.gpu.now())

    def query(self) -> bool:
        self.gpu.refuse_in_capture("a query")
        return self.seconds <= self.gpu.now()

    def elapsed_time(self, end: "FakeEvent") -> float:
        if not (self.query() and end.query()):
            raise RuntimeError("CUDA error: the events are not both over")
        return 1e3 * (end.seconds - self.seconds)


class FakeGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.is_captured = False

    def replay(self) -> None:
        if not self.is_captured:
            raise RuntimeError("nothing was captured")
        self.gpu.queue()


class FakeStream:
    """Stands in for `torch.cuda.Stream`; all work goes into one queue."""

    cuda_stream = 0

    def wait_stream(self, stream: object) -> None:
        """All work is in order anyway."""


@contextlib.contextmanager
def _use(stream: object):
    yield


def _is_cuda(argument: object) -> bool:
    if isinstance(argument, torch.device):
        return argument.type == "cuda"
    return isinstance(argument, str) and argument.split(":")[0] == "cuda"


def _on_host(argument: Any) -> Any:
    return torch.device("cpu") if _is_cuda(argument) else argument


class _TensorsOnTheGpu(TorchFunctionMode):
    """Tensors lie on the CPU and say that they are on the GPU; each operation is queued."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func == torch.Tensor.device.__get__:
            device = func(*args)
            return torch.device("cuda", 0) if device.type == "cpu" else device
        if func == torch.Tensor.is_cuda.__get__:
            return func(*args) or args[0].is_cpu
        if func == torch.Tensor.cuda:
            return args[0]
        if func == torch.Tensor.pin_memory:
            return args[0]
        name = getattr(func, "__name__", "")
        if name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
            self.gpu.synchronize()
        elif name != "__get__":
            self.gpu.queue()
        return func(*tree_map(_on_host, args), **tree_map(_on_host, kwargs or {}))


class _FakeModule:
    """A module of the emulator, whose launches go through the queue of the fake GPU."""

    def __init__(self, gpu: FakeGpu, module: Any) -> None:
        self.gpu = gpu
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def launch(self, *arguments: Any) -> None:
        self.gpu.queue()
        # the emulator writes into inputs too, what they hold; autograd shall take no notice
        self.module.launch(*(a.data if isinstance(a, torch.Tensor) else a for a in arguments))


def _loader(gpu: FakeGpu, load: Callable[..., Any]) -> Callable[..., Any]:
    """`jit.load` of the emulator, which refuses what a capture refuses."""
    loaded = {}

    def fake_load(*key: Any) -> Any:
        if key not in loaded:
            gpu.refuse_in_capture("loading a kernel")
            loaded[key] = _FakeModule(gpu, load(*key))
        return loaded[key]

    return fake_load


def _replacements(gpu: FakeGpu) -> dict[str, object]:
    """What takes the place of the names in torch.cuda."""
    properties = SimpleNamespace(
        name=NAME, multi_processor_count=2, major=CAPABILITY[0], minor=CAPABILITY[1]
    )
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda *arguments, **options: True,
        "is_current_stream_capturing": lambda: gpu.capturing,
        "synchronize": gpu.synchronize,
        "_sleep": gpu.sleep,
        "Event": gpu.event,
        "Stream": lambda *arguments, **options: FakeStream(),
        "stream": _use,
        "current_stream": lambda device=None: FakeStream(),
        "CUDAGraph": gpu.graph,
        "graph": gpu.capture,
        "graph_pool_handle": lambda: (0, 0),
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 10**6,
        "max_memory_allocated": lambda device=None: 10**7,
        "reset_peak_memory_stats": lambda device=None: None,
    }


class _Generator(torch.Generator):
    """Draws on the CPU, whatever its device is."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


class _Autocast(torch.autocast):
    """The CPU's mixed precision in the place of the GPU's."""

    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        super().__init__(device_type.replace("cuda", "cpu"), *arguments, **options)


# What a whole program calls. The emulator's guards of results know fewer ways to call the first
# two, so these are as they were.
_FOR_PROGRAMS = (
    (torch, "empty_like", torch.empty_like),
    (torch.Tensor, "new_empty", torch.Tensor.new_empty),
    (torch, "Generator", _Generator),
    (torch, "autocast", _Autocast),
    (torch.version, "cuda", torch.version.cuda or "13.0"),
)


@contextlib.contextmanager
def pretend() -> Iterator[FakeGpu]:
    """Inside, there is a GPU for torch, katlib and `timing`; torch.compile compiles nothing."""
    gpu = FakeGpu(time.perf_counter)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(timing, "perf_counter", gpu.now))
        # there is no cache to flush, and a sleep takes no time
        stack.enter_context(mock.patch.object(timing, "FLUSH_BYTES", 1024))
        stack.enter_context(mock.patch.object(timing, "LONGEST_SLEEP_MS", 1e9))
        for name, replacement in _replacements(gpu).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        stack.enter_context(mock.patch.object(torch, "compile", lambda f, **options: f))
        stack.enter_context(emulation(ordered=False))
        for place, name, replacement in _FOR_PROGRAMS:
            stack.enter_context(mock.patch.object(place, name, replacement))
        stack.enter_context(mock.patch.object(jit, "load", _loader(gpu, jit.load)))
        # tensors are the CPU's, so the operator asks the CPU's backend
        stack.enter_context(mock.patch.object(cpu, "forward", katlib.cuda.forward))
        stack.enter_context(mock.patch.object(cpu, "backward", katlib.cuda.backward))
        stack.enter_context(_TensorsOnTheGpu(gpu))
        yield gpu


@contextlib.contextmanager
def rehearsal() -> Iterator[FakeGpu]:
    """`pretend`, with the results written to `REHEARSAL`."""
    REHEARSAL.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(timing, "RESULTS", REHEARSAL), pretend() as gpu:
        yield gpu
