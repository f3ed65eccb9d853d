"""`katlib::rational` as a PyTorch operator: one name, and behind it the fastest way of computing it that the device has.

    katlib::rational(x, a, b) -> y                              katlib::rational_backward(g, x, a, b) -> (dx, da, db)

with contiguous x, g, y and dx (rows, G, span), a (Ga, m + 1) and b (Gb, n) for divisors Ga and Gb of G, whose rows are shared by neighbouring groups;
a and b are float64 if x is, else float32. CPU tensors go to `katlib.cpu`, CUDA tensors to `katlib.cuda`; where those cannot serve, and on any other device, the reference in PyTorch runs. The backward stores x and the
coefficients alone. Derivatives of second and higher order go through the reference.
"""

import math
from operator import attrgetter

import torch
from torch import Tensor

from katlib import cpu, cuda
from katlib.reference import evaluate, gradients

LIBRARY = torch.library.Library("katlib", "DEF")
LIBRARY.define("rational(Tensor x, Tensor a, Tensor b) -> Tensor")
LIBRARY.define(
    "rational_backward(Tensor g, Tensor x, Tensor a, Tensor b) -> (Tensor, Tensor, Tensor)"
)
FORWARD, BACKWARD = torch.ops.katlib.rational.default, torch.ops.katlib.rational_backward.default


def reference_forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The operator in plain PyTorch."""
    return evaluate(x.to(a.dtype), a, b).to(x.dtype).contiguous()


def reference_backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward in plain PyTorch, itself differentiable."""
    dx, da, db = gradients(g.to(a.dtype), x.to(a.dtype), a, b)
    return dx.to(x.dtype).contiguous(), da, db


def _check_rows(x: Tensor, a: Tensor, b: Tensor) -> None:
    if not all(len(c) and x.shape[1] % len(c) == 0 for c in (a, b)):
        raise ValueError(
            f"{len(a)} and {len(b)} rows of coefficients for {x.shape[1]} groups; the rows must divide the groups"
        )


def _register(device: str, backend, serves) -> None:
    """Registers a backend for a device; what it does not serve, the reference does."""

    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        _check_rows(x, a, b)
        if not serves(x.dtype, a.shape[1] - 1, b.shape[1]):
            return reference_forward(x, a, b)
        return backend.forward(x.contiguous(), a.contiguous(), b.contiguous())

    def backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check_rows(x, a, b)
        if not serves(x.dtype, a.shape[1] - 1, b.shape[1]):
            return reference_backward(g, x, a, b)
        return backend.backward(g.contiguous(), x.contiguous(), a.contiguous(), b.contiguous())

    LIBRARY.impl("rational", forward, device)
    LIBRARY.impl("rational_backward", backward, device)


_register("CPU", cpu, cpu.available)
_register(
    "CUDA",
    cuda,
    lambda dtype, m, n: m <= cuda.MAX_DEGREE and n <= cuda.MAX_DEGREE and cuda.available(),
)
LIBRARY.impl("rational", reference_forward, "CompositeExplicitAutograd")
LIBRARY.impl("rational_backward", reference_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("katlib::rational")
def _(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("katlib::rational_backward")
def _(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(a),
        torch.empty_like(b),
    )


def _fold(batch: int, tensors, dims) -> list[Tensor]:
    """For vmap: puts the mapped dimension into the groups, so that each sample's groups are groups of their own. Groups that shared a row still do:
    groups and rows are both multiplied by the batch."""
    tensors = [
        t.expand(batch, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims)
    ]
    return [
        (t.transpose(0, 1).flatten(1, 2) if t.ndim == 4 else t.flatten(0, 1)).contiguous()
        for t in tensors
    ]


def _unfold(batch: int, t: Tensor) -> Tensor:
    """(rows, batch G, span) -> (batch, rows, G, span), and (batch G, k) -> (batch, G, k)."""
    return (
        t.unflatten(1, (batch, -1)).transpose(0, 1) if t.ndim == 3 else t.unflatten(0, (batch, -1))
    )


class _Function(torch.autograd.Function):
    """An operator with what all transforms of torch.func need: a context, and a rule for vmap."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @classmethod
    def vmap(cls, info, in_dims, *tensors):
        output = cls.apply(*_fold(info.batch_size, tensors, in_dims))
        if isinstance(output, Tensor):
            return _unfold(info.batch_size, output), 0
        return tuple(_unfold(info.batch_size, t) for t in output), (0, 0, 0)


class _Rational(_Function):
    @staticmethod
    def forward(x, a, b):
        return FORWARD(x, a, b)

    @staticmethod
    def backward(ctx, g):
        return _RationalBackward.apply(
            g.contiguous(), *ctx.saved_tensors
        )  # contiguous: the gradient of a sum has stride 0


class _RationalBackward(_Function):
    @staticmethod
    def forward(g, x, a, b):
        return BACKWARD(g, x, a, b)

    @staticmethod
    def backward(ctx, *gradients_of_gradients):
        _, pull_back = torch.func.vjp(reference_backward, *ctx.saved_tensors)
        return pull_back(gradients_of_gradients)


# torch.compile and torch.export see the operator and these; in eager mode the Functions above, which torch.func understands too.
torch.library.register_autograd(
    "katlib::rational",
    lambda ctx, g: BACKWARD(g.contiguous(), *ctx.saved_tensors),
    setup_context=_Function.setup_context,
)
torch.library.register_autograd(
    "katlib::rational_backward", _RationalBackward.backward, setup_context=_Function.setup_context
)


def grouped_shape(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[int, int, int]:
    """(rows, G, span) for `grouped`."""
    G, shape, dim = math.lcm(numerator.shape[0], denominator.shape[0]), x.shape, dim % x.ndim
    return math.prod(shape[:dim]), G, shape[dim] // G * math.prod(shape[dim + 1 :])


def grouped(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x as (rows, G, span), the coefficients in the type that is computed in.

    In a contiguous tensor a group of neighbouring channels is one contiguous span, whatever follows the channel dimension, so
    (..., C) and (N, C, H, W) become the same three numbers. G is the least common multiple of the two group counts.
    """
    dtype = torch.promote_types(
        x.dtype, torch.float32
    )  # float16 and bfloat16 are computed in float32
    return (
        x.reshape(grouped_shape(x, numerator, denominator, dim)),
        numerator.to(dtype),
        denominator.to(dtype),
    )


def composed(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    """F(x) for tensors that are known to fit, each step seen by autograd and by the compiler."""
    parts, a, b = grouped(x, numerator, denominator, dim)
    if torch.onnx.is_in_onnx_export():  # ONNX has no such operator, so it gets what ours is made of
        return evaluate(parts.to(a.dtype), a, b).to(x.dtype).reshape(x.shape)
    apply = FORWARD if torch.compiler.is_compiling() else _Rational.apply
    return apply(parts.contiguous(), a.contiguous(), b.contiguous()).reshape(x.shape)


TENSORS = Tensor, torch.nn.Parameter
# What is asked of torch by private names: whether torch.func transforms what runs now, as torch's own autograd.Function asks it; how many modes wait for each
# call of the dispatcher; what traces now, or None; what a tensor is to the dispatcher, and that as a number (in torch 2.6 it is equal to nothing).
PRIVATE = (
    "_are_functorch_transforms_active",
    "_len_torch_dispatch_stack",
    "_get_tracing_state",
    "_dispatch_keys",
    "DispatchKeySet.raw_repr",
)
try:
    _transformed, _modes, _tracing, _keys, _number = attrgetter(*PRIVATE)(torch._C)
    PLAIN = _number(
        _keys(torch.empty(0, device="cpu"))
    )  # on the CPU and nothing else: no batch of vmap's older sort, no subclass
except AttributeError:  # a torch that has lost one: everything is `composed`, which needs none

    def _transformed() -> bool:
        return True


def _direct(x: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the dispatcher would do no more than call `katlib.cpu`, which then is done at once: the way there is half of a small tensor's time."""
    return (
        type(x) in TENSORS
        and type(a) in TENSORS
        and type(b) in TENSORS
        and _number(_keys(x)) == _number(_keys(a)) == _number(_keys(b)) == PLAIN
        and not _modes()
        and _tracing() is None
        and a.dtype == b.dtype == (x.dtype if x.dtype == torch.float64 else torch.float32)
        and a.is_contiguous()
        and b.is_contiguous()
        and cpu.available(x.dtype, a.shape[1] - 1, b.shape[1])
    )


class _Whole(torch.autograd.Function):
    """`composed` as one node of the graph, for eager mode: six small nodes would cost a small tensor more than the function itself."""

    @staticmethod
    def forward(ctx, x, numerator, denominator, dim, direct):
        ctx.save_for_backward(x, numerator, denominator)
        ctx.dim, ctx.shape = dim, grouped_shape(x, numerator, denominator, dim)
        if direct:
            return cpu.forward(x.contiguous(), numerator, denominator, ctx.shape)
        parts, a, b = grouped(x, numerator, denominator, dim)
        return FORWARD(parts.contiguous(), a, b).view(x.shape)

    @staticmethod
    def backward(ctx, g):
        x, numerator, denominator = (
            ctx.saved_tensors
        )  # or what hooks have put in their place: direct or not is asked again
        plain = not torch.is_grad_enabled() and not _transformed()
        if (
            plain
            and type(g) in TENSORS
            and _number(_keys(g)) == PLAIN
            and _direct(x, numerator, denominator)
        ):
            return (
                *cpu.backward(g.contiguous(), x.contiguous(), numerator, denominator, ctx.shape),
                None,
                None,
            )
        parts, a, b = grouped(x, numerator, denominator, ctx.dim)
        pull_back = BACKWARD if plain else _RationalBackward.apply
        dx, da, db = pull_back(g.reshape(parts.shape).contiguous(), parts.contiguous(), a, b)
        return dx.view(x.shape), da.to(numerator.dtype), db.to(denominator.dtype), None, None


# `_Whole.apply` without the wrapper in Python, which asks once more for transforms, and for tensors that one has left behind: such a one is not direct.
_apply_direct = super(torch.autograd.Function, _Whole).apply


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    """F(x) for tensors that are known to fit (`katlib.rational` checks them); gradients of any order."""
    if torch.compiler.is_compiling() or _transformed():
        return composed(x, numerator, denominator, dim)
    direct = _direct(x, numerator, denominator)
    return (_apply_direct if direct else _Whole.apply)(x, numerator, denominator, dim, direct)
