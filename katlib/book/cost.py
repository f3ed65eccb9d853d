"""What a training step costs, counted without running it, and how long a machine needs for it at least.

    step = count_step(lambda: katlib.VisionTransformer(), batch_size=64)         every kernel's FLOPs and bytes; the memory after each
    step_seconds(step, machine)                                                  the roofline (Williams et al., 2009), kernel by kernel
    parallel_seconds(step, machine, processes=8, link=450e9)                     with the sum of the gradients over several of them

The step is forward, cross-entropy, backward and AdamW. It runs on tensors that have a shape and no numbers (PyTorch's `FakeTensorMode`), so that a
model can be counted that would not fit into this machine. Chapter 15 builds it and says how far it is from measured steps.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from katlib import ops

aten, ours = torch.ops.aten, torch.ops.katlib
BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sums at once


def _chains(a: Tensor, b: Tensor) -> int:
    """m + n, the multiplications of the two Horner chains."""
    return a.shape[1] - 1 + b.shape[1]


# what PyTorch's table of matrix products lacks: attention on a CPU, and the rational function (the count of chapter 9)
FLOPS: dict = dict(flop_registry) | {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
    ours.rational: lambda x, a, b, **_: (2 * _chains(a, b) + 3) * x.numel(),
    ours.rational_backward: lambda g, x, a, b, **_: (6 * _chains(a, b) + 9) * x.numel(),
}
WRITTEN = {
    aten._fused_adamw_: (0, 2, 3)
}  # parameters and two moments; the gradients only under a GradScaler
FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten._unsafe_view,
    aten.promote_types,
}  # no kernel runs


def _tensors(tree) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _written(op, args: tuple, result) -> list[Tensor]:
    """What an operator writes: its result, or, where it returns nothing, the arguments that its schema says it changes."""
    if op._schema.returns:
        return _tensors(result)
    changed = [
        i
        for i, argument in enumerate(op._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return _tensors([args[i] for i in WRITTEN.get(op.overloadpacket, changed) if i < len(args)])


@dataclass(frozen=True)
class Kernel:
    """One kernel of a step: its operator, its phase ("forward", "backward" or "update"), its FLOPs (0 where they are not worth counting),
    the bytes that it reads and writes, and the bytes of all tensors that are alive after it."""

    name: str
    phase: str
    flops: int
    bytes: int
    alive: int


@dataclass(frozen=True)
class Step:
    """A training step of `batch_size` images. `peak` are the bytes that are alive at most, `kept` those that forward keeps for backward."""

    kernels: tuple[Kernel, ...]
    parameters: int
    batch_size: int
    before: int  # bytes alive before it: parameters, the optimizer's state, the images

    flops = property(lambda self: sum(k.flops for k in self.kernels))
    bytes = property(lambda self: sum(k.bytes for k in self.kernels))
    peak = property(lambda self: max(k.alive for k in self.kernels))
    kept = property(
        lambda self: [k for k in self.kernels if k.phase == "forward"][-1].alive - self.before
    )


@dataclass(frozen=True)
class Machine:
    """A processor as the model sees it.

    Args:
        peak: FLOP/s of a large matrix product in the type that the step computes in.
        bandwidth: bytes/s of a copy, read and written.
        call: seconds that Python and PyTorch need for each kernel.
        waits: whether a call waits for its kernel, as on a CPU, or goes on, as on a GPU.
    """

    peak: float
    bandwidth: float
    call: float
    waits: bool = True


class _Meter(TorchDispatchMode):
    """Sees every operator that runs, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.phase, self.alive, self.living = "forward", 0, set()

    def begin(self, phase: str) -> int:
        """Forgets the kernels so far; returns the bytes that are alive."""
        self.kernels, self.phase = [], phase
        return self.alive

    def born(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.living:
            self.living.add(key)
            self.alive += size
            weakref.finalize(storage, self.died, key, size)

    def died(self, key: int, size: int) -> None:
        self.living.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _written(op, args, result)
        for t in written:
            self.born(t)
        packet = op.overloadpacket
        if op.namespace in ("aten", "katlib") and not op.is_view and packet not in FREE:
            # an expanded tensor is no larger than its storage
            moved = sum(
                {id(t): min(t.nbytes, t.untyped_storage().nbytes()) for t in read}.values()
            ) + sum(t.nbytes for t in written)
            flops = FLOPS[packet](*args, **kwargs, out_val=result) if packet in FLOPS else 0
            self.kernels.append(
                Kernel(f"{op.namespace}::{op._opname}", self.phase, flops, moved, self.alive)
            )
        return result


def count_step(
    build: Callable[[], nn.Module], batch_size: int, img_size: int = 224, half: bool = False
) -> Step:
    """Counts a training step, without running it.

    Args:
        build: makes the model, which takes images (B, 3, img_size, img_size) and returns logits (B, classes).
        batch_size: images in a step.
        img_size: their side length in pixels.
        half: whether the step runs under bfloat16 autocast; parameters, gradients and the optimizer stay float32.

    Attention is counted as the fused kernel that PyTorch takes where it can. `half` goes by the CPU's rules of autocast, which are a GPU's where, as in a
    transformer of this package, every norm's input is float32. The counts are those of separate kernels (eager mode);
    `torch.compile` fuses some, and then the bytes are fewer.

    Example:
        >>> from katlib.book.cost import count_step
        >>> step = count_step(lambda: katlib.VisionTransformer(embed_dim=192, num_heads=3), batch_size=64)
        >>> f"{step.flops / 64 / 1e9:.1f} GFLOP an image, {step.parameters:,} parameters"
        '7.8 GFLOP an image, 5,718,328 parameters'
    """
    with torch.device("meta"):
        model = build()
    with FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
        model.to_empty(device="cpu")
        images, labels = (
            torch.empty(batch_size, 3, img_size, img_size),
            torch.empty(batch_size, dtype=torch.int64),
        )
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()  # from now on it has its two moments
        optimizer.zero_grad(set_to_none=True)
        before = meter.begin("forward")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        meter.phase = "backward"
        loss.backward()
        meter.phase = "update"
        optimizer.step()
    return Step(
        tuple(meter.kernels), sum(p.numel() for p in model.parameters()), batch_size, before
    )


def step_seconds(step: Step, machine: Machine, phase: str | None = None) -> float:
    """Seconds for a step, or one phase of it, if every kernel ran at the machine's peak or at its bandwidth, whichever takes longer.

    Where calls wait for kernels both add up; where they do not, the longer of the two counts.
    """
    kernels = [k for k in step.kernels if phase in (None, k.phase)]
    running = sum(max(k.flops / machine.peak, k.bytes / machine.bandwidth) for k in kernels)
    calling = machine.call * len(kernels)
    return running + calling if machine.waits else max(running, calling)


def reduce_seconds(bytes: float, processes: int, link: float) -> float:
    """Seconds to sum `bytes` over a ring of processes, of which each sends and receives `link` bytes/s: in 2 (n - 1) steps every process sends
    an n-th of them (Patarasu and Yuan, 2009)."""
    return 2 * (processes - 1) / processes * bytes / link


def parallel_seconds(
    step: Step, machine: Machine, processes: int, link: float, overlap: bool = True
) -> float:
    """Seconds of a step on each of several machines that sum their gradients (float32), as `DistributedDataParallel` does it.

    Args:
        step: what one process computes.
        link: bytes/s that a process sends and receives at once.
        overlap: whether the sum goes on beside backward; then only the last bucket, which waits for the last gradient, is never hidden.
    """
    gradients = 4 * step.parameters
    total = reduce_seconds(gradients, processes, link)
    if not overlap:
        return step_seconds(step, machine) + total
    last = reduce_seconds(min(gradients, BUCKET), processes, link)
    seconds = {
        phase: step_seconds(step, machine, phase) for phase in ("forward", "backward", "update")
    }
    return seconds["forward"] + max(seconds["backward"] + last, total) + seconds["update"]
