"""What a training step costs, counted without running it, and the least time that it can take.

    step = count_step(lambda: katlib.VisionTransformer(), batch_size=64)
        every kernel's FLOPs and bytes, and the memory that is in use after it
    step_seconds(step, machine)
        the roofline model (Williams et al., 2009), kernel by kernel
    CHIPS["H200"].machine()
        a GPU by its data sheet, which also bounds the instructions of the rational function
    parallel_seconds(step, machine, processes=8, link=450e9)
        with the gradients summed over several processes

The step is forward, cross-entropy, backward and AdamW. It runs on tensors that have a shape and no
numbers (PyTorch's `FakeTensorMode`), so a model can be counted that would not fit into this
machine. Chapter 15 builds the model of cost and compares it with measured steps.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from katlib import (
    ops,  # noqa: F401  (registers the operators of katlib)
    vit,
)

aten = torch.ops.aten

# an operator as the dispatcher sees it: torch's OpOverload, which has no public name
Operator = Any

PHASES = ("forward", "backward", "update")

# bytes of gradients that DistributedDataParallel sums at once
BUCKET = 25 * 2**20

FLOAT32_BYTES = 4


# ---- the FLOPs that PyTorch's table of matrix products lacks: attention on a CPU, and ours


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward_flops(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)


def _horner_steps(numerator: Tensor, denominator: Tensor) -> int:
    """m + n, the multiplications of the two Horner schemes."""
    return numerator.shape[1] - 1 + denominator.shape[1]


def _rational_flops(x: Tensor, numerator: Tensor, denominator: Tensor, *_: Any, **__: Any) -> int:
    """Counted in chapter 9."""
    return (2 * _horner_steps(numerator, denominator) + 3) * x.numel()


def _rational_backward_flops(
    g: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, *_: Any, **__: Any
) -> int:
    """Counted in chapter 9, for the gradients of the input and of all coefficients."""
    return (6 * _horner_steps(numerator, denominator) + 9) * x.numel()


# ---- the instructions of rational.cu, for one element


# The float32 arithmetic is as exact as the formulas below. The rest is what the machine code has
# besides, for bfloat16 on an H100: conversions, the reciprocal, addresses, loads and stores.
OTHER_FORWARD, OTHER_BACKWARD = 4.75, 8.125


def rational_instructions(m: int, n: int, backward: bool = False) -> tuple[float, float]:
    """Instructions an element of katlib's CUDA kernel, and how many of them are float32 arithmetic.

    A multiplication with an addition is one instruction. The backward kernel evaluates P, P', Q and
    Q', makes the powers of |x| and adds m + 1 + n terms to as many sums. For degrees up to (5, 4)
    the counts are those of `python -m katlib.cuda.sass`; for larger ones, where the kernel guards
    against overflow, they are up to a tenth too low.

    Args:
        m, n: the degrees of numerator and denominator.
        backward: of the backward kernel, with all gradients; else of the forward kernel.

    Returns:
        (all instructions, float32 arithmetic)

    Example:
        >>> from katlib.book.cost import rational_instructions
        >>> rational_instructions(5, 4), rational_instructions(5, 4, backward=True)
        ((14.75, 10), (45.125, 37))
    """
    if backward:
        arithmetic = 3 * (m + n) + m + 5
        return arithmetic + OTHER_BACKWARD, arithmetic
    arithmetic = m + n + 1
    return arithmetic + OTHER_FORWARD, arithmetic


def _instructions(op: Operator, args: tuple) -> tuple[float, float]:
    """All instructions of a kernel and its float32 arithmetic; (0, 0) if they are not counted."""
    packet = op.overloadpacket
    backward = packet == torch.ops.katlib.rational_backward
    if not backward and packet != torch.ops.katlib.rational:
        return 0.0, 0.0
    x, numerator, denominator = args[1:4] if backward else args[:3]
    degrees = numerator.shape[1] - 1, denominator.shape[1]
    issued, arithmetic = rational_instructions(*degrees, backward)
    return issued * x.numel(), arithmetic * x.numel()


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.katlib.rational: _rational_flops,
    torch.ops.katlib.rational_backward: _rational_backward_flops,
}

# operators that run no kernel, beside those that only make a view
NO_KERNEL = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten._unsafe_view,
    aten.promote_types,
}

# The arguments that an operator writes, by their places, where its schema names too many: AdamW
# writes parameters and two moments, and gradients only under a GradScaler.
WRITTEN_ARGUMENTS = {aten._fused_adamw_: (0, 2, 3)}


# ---- a step and a machine


@dataclass(frozen=True)
class Kernel:
    """One kernel of a step.

    Attributes:
        name: its operator, for example "aten::mm".
        phase: "forward", "backward" or "update".
        flops: its floating-point operations; 0 where they are not worth counting.
        bytes: what it reads and writes.
        alive: the bytes of all tensors that exist after it.
        instructions: what a GPU issues for it, where that is counted: of the rational function.
        arithmetic: how many of these are float32 arithmetic.
    """

    name: str
    phase: str
    flops: int
    bytes: int
    alive: int
    instructions: float = 0.0
    arithmetic: float = 0.0


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        kernels: all kernels, in the order in which they run.
        parameters: of the model.
        batch_size: number of images.
        before: bytes that exist before the step: parameters, the optimizer's state, the images.
    """

    kernels: tuple[Kernel, ...]
    parameters: int
    batch_size: int
    before: int

    @property
    def flops(self) -> int:
        """Floating-point operations of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def peak(self) -> int:
        """The most bytes that exist at once."""
        return max(kernel.alive for kernel in self.kernels)

    @property
    def kept(self) -> int:
        """Bytes that forward keeps for backward."""
        forward = [kernel for kernel in self.kernels if kernel.phase == "forward"]
        return forward[-1].alive - self.before


@dataclass(frozen=True)
class Machine:
    """A processor as the model of cost sees it.

    Args:
        peak: FLOP/s of a large matrix product in the type that the step computes in.
        bandwidth: bytes/s of a copy, read and written.
        call: seconds that Python and PyTorch need for each kernel.
        waits: whether a call waits for its kernel, as on a CPU, or goes on, as on a GPU.
        issue: instructions a second of all threads together; without it, instructions are free.
        arithmetic: of these, float32 arithmetic.
    """

    peak: float
    bandwidth: float
    call: float
    waits: bool = True
    issue: float = math.inf
    arithmetic: float = math.inf


# A multiprocessor has four schedulers. Each issues, per clock, one instruction for 32 threads.
ISSUED_PER_CLOCK = 4 * 32


@dataclass(frozen=True)
class Chip:
    """A GPU by its data sheet.

    Args:
        name: without the maker's.
        multiprocessors: how many it has.
        lanes: units of a multiprocessor for float32 arithmetic.
        clock: Hz, the highest.
        bandwidth: bytes/s of its memory.
        peak: FLOP/s of matrix products in half precision, without sparsity.

    Example:
        >>> from katlib.book.cost import CHIPS
        >>> h100 = CHIPS["H100"]
        >>> f"{h100.room(4):.1f} instructions an element of 4 bytes, {h100.room(6):.1f} of 6"
        '39.9 instructions an element of 4 bytes, 59.9 of 6'
    """

    name: str
    multiprocessors: int
    lanes: int
    clock: float
    bandwidth: float
    peak: float

    @property
    def issue(self) -> float:
        """Instructions a second, counted for every thread."""
        return self.multiprocessors * ISSUED_PER_CLOCK * self.clock

    @property
    def arithmetic(self) -> float:
        """Of these, float32 arithmetic: half the FLOP/s that the data sheet has for float32."""
        return self.multiprocessors * self.lanes * self.clock

    def room(self, moved: float) -> float:
        """The instructions that can be issued while the memory moves so many bytes."""
        return self.issue * moved / self.bandwidth

    def load(self, instructions: float, arithmetic: float, moved: float) -> float:
        """The time for instructions in units of the time for bytes; above 1, memory waits.

        Args:
            instructions: of an element.
            arithmetic: how many of them are float32 arithmetic.
            moved: bytes of an element.
        """
        computing = max(instructions / self.issue, arithmetic / self.arithmetic)
        return computing * self.bandwidth / moved

    def machine(self, call: float = 0.0, share: float = 1.0) -> Machine:
        """The machine of the cost model.

        Args:
            call: seconds that Python and PyTorch need for each kernel.
            share: the fraction of all its rates that is reached.
        """
        return Machine(
            peak=share * self.peak,
            bandwidth=share * self.bandwidth,
            call=call,
            waits=False,
            issue=share * self.issue,
            arithmetic=share * self.arithmetic,
        )


# NVIDIA's data sheets and white papers (T4, A100 SXM with 80 GB, H100 SXM, H200 SXM, HGX B200). As
# a check, 2 x multiprocessors x lanes x clock is the FLOP/s that they have for float32.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("T4", 40, 64, 1.59e9, 320e9, 65e12),
        Chip("A100", 108, 64, 1.41e9, 2.039e12, 312e12),
        Chip("H100", 132, 128, 1.98e9, 3.35e12, 989e12),
        Chip("H200", 132, 128, 1.98e9, 4.8e12, 989e12),
        Chip("B200", 148, 128, 1.98e9, 8.0e12, 2250e12),
    )
}


# ---- counting


class _Meter(TorchDispatchMode):
    """Sees every operator that runs, below autograd, and keeps what it costs.

    Attributes:
        kernels: what has run so far.
        phase: the phase of the kernels to come.
        alive: bytes of all tensors that exist and were made while the meter was active.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.phase = "forward"
        self.alive = 0
        self._known_storages: set[int] = set()

    def __torch_dispatch__(
        self, op: Operator, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        written = _written(op, args, result)
        for tensor in written:
            self._track(tensor)
        if _runs_a_kernel(op):
            packet = op.overloadpacket
            instructions, arithmetic = _instructions(op, args)
            kernel = Kernel(
                name=f"{op.namespace}::{packet.__name__}",
                phase=self.phase,
                flops=FLOPS[packet](*args, **kwargs, out_val=result) if packet in FLOPS else 0,
                bytes=_bytes_read((args, kwargs)) + sum(tensor.nbytes for tensor in written),
                alive=self.alive,
                instructions=instructions,
                arithmetic=arithmetic,
            )
            self.kernels.append(kernel)
        return result

    def _track(self, tensor: Tensor) -> None:
        """Counts the tensor's storage as alive, once, until it is freed."""
        storage = tensor.untyped_storage()
        # a storage without numbers has no address, so the C++ object's stands for it
        key = storage._cdata
        if key in self._known_storages:
            return
        size = storage.nbytes()
        self._known_storages.add(key)
        self.alive += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known_storages.discard(key)
        self.alive -= size


def _runs_a_kernel(op: Operator) -> bool:
    is_computation = op.namespace in ("aten", "katlib")
    return is_computation and not op.is_view and op.overloadpacket not in NO_KERNEL


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes_read(arguments: Any) -> int:
    """Bytes of the tensors among an operator's arguments.

    A tensor that is passed twice is read once, and an expanded one is no larger than its storage.
    """
    different = {id(tensor): tensor for tensor in _tensors(arguments)}
    return sum(
        min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in different.values()
    )


def _written(op: Operator, args: tuple, result: Any) -> list[Tensor]:
    """What an operator writes: its result, or the arguments that it changes if it has none."""
    if op._schema.returns:
        return _tensors(result)
    places = WRITTEN_ARGUMENTS.get(op.overloadpacket) or [
        place
        for place, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors([args[place] for place in places if place < len(args)])


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, a transformer's attention is one kernel in half precision too, as on a GPU.

    On a CPU `katlib.vit` takes three steps there.
    """
    before = vit.attention
    vit.attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v)
    try:
        yield
    finally:
        vit.attention = before


def count_step(
    build: Callable[[], nn.Module], batch_size: int, img_size: int = 224, half: bool = False
) -> Step:
    """Counts a training step, without running it.

    Args:
        build: makes the model, which takes images (B, 3, img_size, img_size) and returns logits
            (B, classes).
        batch_size: images in a step.
        img_size: their side length in pixels.
        half: whether the step runs under bfloat16 autocast; parameters, gradients and the
            optimizer stay float32.

    Attention is counted as the fused kernel, which PyTorch takes on a GPU. `half` follows the
    CPU's rules of autocast. They agree with a GPU's if every norm's input is float32, as it is in
    the transformers of this package. The counts are those of separate kernels (eager mode);
    `torch.compile` fuses some of them, which then move fewer bytes.

    Example:
        >>> from katlib.book.cost import count_step
        >>> def kat_tiny():
        ...     return katlib.VisionTransformer(embed_dim=192, num_heads=3)
        >>> step = count_step(kat_tiny, batch_size=64)
        >>> f"{step.flops / 64 / 1e9:.1f} GFLOP an image, {step.parameters:,} parameters"
        '7.8 GFLOP an image, 5,718,328 parameters'
    """
    with torch.device("meta"):
        model = build()
    with FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
        model.to_empty(device="cpu")
        images = torch.empty(batch_size, 3, img_size, img_size)
        labels = torch.empty(batch_size, dtype=torch.int64)
        optimizer = _optimizer_with_moments(model)
        before = meter.alive
        meter.kernels.clear()

        meter.phase = "forward"
        with torch.autocast("cpu", torch.bfloat16, enabled=half), fused_attention():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        meter.phase = "backward"
        loss.backward()
        meter.phase = "update"
        optimizer.step()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Step(tuple(meter.kernels), parameters, batch_size, before)


def _optimizer_with_moments(model: nn.Module) -> torch.optim.Optimizer:
    """An AdamW that has taken a step: only then do its two moments exist."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


# ---- from counts to seconds


def step_seconds(step: Step, machine: Machine, phase: str | None = None) -> float:
    """The least seconds for a step, by the roofline of the machine.

    Every kernel takes as long as its FLOPs, its bytes or its instructions, whichever takes longest.
    Only the rational function's instructions are counted, so what else a step has may take longer
    than its bound. If calls wait for kernels, both times add up; if not, the longer of the two
    counts.

    Args:
        step: from `count_step`.
        machine: what it runs on.
        phase: one phase, "forward", "backward" or "update"; all by default.
    """
    kernels = [kernel for kernel in step.kernels if phase in (None, kernel.phase)]
    running = sum(_kernel_seconds(kernel, machine) for kernel in kernels)
    calling = machine.call * len(kernels)
    return running + calling if machine.waits else max(running, calling)


def _kernel_seconds(kernel: Kernel, machine: Machine) -> float:
    return max(
        kernel.flops / machine.peak,
        kernel.bytes / machine.bandwidth,
        kernel.instructions / machine.issue,
        kernel.arithmetic / machine.arithmetic,
    )


def reduce_seconds(bytes: float, processes: int, link: float) -> float:
    """Seconds to sum `bytes` over a ring of processes (Patarasu and Yuan, 2009).

    With n processes there are 2 (n - 1) steps, in each of which every process sends an n-th of the
    bytes.

    Args:
        bytes: size of what each process has.
        processes: their number, n.
        link: bytes/s that a process sends, and at the same time receives.
    """
    return 2 * (processes - 1) / processes * bytes / link


def parallel_seconds(
    step: Step, machine: Machine, processes: int, link: float, overlap: bool = True
) -> float:
    """Seconds of a step on each of several machines that sum their gradients (float32).

    The sum is that of `DistributedDataParallel`, bucket by bucket.

    Args:
        step: what one process computes.
        machine: what each process runs on.
        processes: their number.
        link: bytes/s that a process sends, and at the same time receives.
        overlap: whether gradients are summed while backward goes on. Even then the last bucket is
            not hidden, because it waits for the last gradient.
    """
    gradient_bytes = FLOAT32_BYTES * step.parameters
    summing = reduce_seconds(gradient_bytes, processes, link)
    if not overlap:
        return step_seconds(step, machine) + summing
    last_bucket = reduce_seconds(min(gradient_bytes, BUCKET), processes, link)
    forward, backward, update = (step_seconds(step, machine, phase) for phase in PHASES)
    return forward + max(backward + last_bucket, summing) + update
