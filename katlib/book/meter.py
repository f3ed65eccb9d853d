"""Counts and times what PyTorch does: kernels, operations, bytes of memory, milliseconds.

    m = meter(bspline_basis, x, knots, 3)
        len(m.kernels), m.operations, m.moved, m.made
    medians({"one": run_one, "other": run_other})
        the median milliseconds of each

Chapter 3 looks at a spline layer with both. The counts depend on shapes alone, so they can be made
on PyTorch's device `meta`, whose tensors have a shape and no numbers.
"""

import ctypes
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# operators that allocate and write nothing
NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: its operator, for example "aten::mul".
        operations: 2 for each pair that a matrix product multiplies; elsewhere 1 for each number
            that is written.
        read: bytes that it reads; an expanded tensor is no larger than what lies in memory.
        written: bytes that it writes.
    """

    name: str
    operations: int
    read: int
    written: int


class Meter(TorchDispatchMode):
    """Sees every kernel that PyTorch runs while it is on.

    Attributes:
        kernels: what has run, in order.
        made: bytes that were newly allocated.
        alive: bytes of what was made and still exists.
        peak: the most that was alive at once.

    Example:
        >>> from katlib.book.meter import Meter
        >>> x = torch.empty(1000, device="meta")
        >>> with Meter() as m:
        ...     y = 2 * x + 1
        >>> len(m.kernels), m.moved, m.peak
        (2, 16000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.made = self.alive = self.peak = 0

    @property
    def operations(self) -> int:
        """Operations of all kernels."""
        return sum(kernel.operations for kernel in self.kernels)

    @property
    def moved(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.read + kernel.written for kernel in self.kernels)

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        read = _tensors((args, kwargs))
        storages = {tensor.untyped_storage() for tensor in read}
        # what lies in the storage of an argument is a view of it
        new = [t for t in _tensors(result) if t.untyped_storage() not in storages]
        for tensor in new:
            self._allocate(tensor)
        written = new + _changed_in_place(op, args, kwargs)
        if written and op.overloadpacket not in NO_KERNEL:
            self.kernels.append(_kernel(op, args, kwargs, result, read, written))
        return result

    def _allocate(self, tensor: Tensor) -> None:
        self.made += tensor.nbytes
        self.alive += tensor.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(tensor.untyped_storage(), self._free, tensor.nbytes)

    def _free(self, size: int) -> None:
        self.alive -= size


def _kernel(
    op: Any, args: tuple, kwargs: dict, result: Any, read: list[Tensor], written: list[Tensor]
) -> Kernel:
    count = flop_registry.get(op.overloadpacket)
    return Kernel(
        name=f"{op.namespace}::{op.overloadpacket.__name__}",
        operations=(
            count(*args, **kwargs, out_val=result) if count else sum(t.numel() for t in written)
        ),
        read=sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in read),
        written=sum(t.nbytes for t in written),
    )


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _changed_in_place(op: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operator writes."""
    changed = []
    for place, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            changed += _tensors(given)
    return changed


def meter(function: Callable, *inputs: Any) -> Meter:
    """What a function does, without gradients.

    Args:
        function: what to count.
        inputs: its arguments; tensors on `meta` are enough.

    Example:
        >>> from katlib.book.meter import meter
        >>> m = meter(torch.nn.functional.silu, torch.empty(512, 128, device="meta"))
        >>> [kernel.name for kernel in m.kernels], m.moved / (512 * 128)
        (['aten::silu'], 8.0)
    """
    with Meter() as m, torch.no_grad():
        function(*inputs)
    return m


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, as PyTorch does on a GPU.

    Otherwise Linux may take back a large tensor's memory and hand out fresh pages for the next
    one, which can double a time or not. Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    # not every C library has it
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping for a large tensor alone
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back


def clock(ways: Mapping[str, Callable[[], Any]], turns: int = 9) -> dict[str, list[float]]:
    """Milliseconds of each way in each turn.

    The ways take turns, so that whatever else the machine does meets all of them. Two turns before
    the first warm up. On a CPU it is the time of the calling thread that counts, without the time
    in which other programs have the core; so let PyTorch use one thread.

    Args:
        ways: maps names to functions without arguments.
        turns: how often each is timed.
    """
    on_gpu = torch.cuda.is_available()
    # the clock of a thread is too coarse on some systems
    is_fine = time.get_clock_info("thread_time").resolution < 1e-6
    now = time.thread_time if is_fine and not on_gpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 2):
        for name, run in ways.items():
            started = now()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            times[name].append(1e3 * (now() - started))
    return {name: measured[2:] for name, measured in times.items()}


def medians(ways: Mapping[str, Callable[[], Any]], turns: int = 9) -> dict[str, float]:
    """The median milliseconds of each way; arguments as in `clock`."""
    return {name: statistics.median(t) for name, t in clock(ways, turns).items()}
