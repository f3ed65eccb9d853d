"""`katlib::rational`: the group-rational function as a PyTorch operator.

    katlib::rational(x, numerator, denominator, dim) -> y
    katlib::rational_backward(g, x, numerator, denominator, dim, input_gradient,
                              coefficient_gradients) -> (dx, d numerator, d denominator)

x is a floating-point tensor of any rank and memory layout. Its dimension `dim` holds the channels;
y and dx have its shape, type and layout. The coefficients are (Gn, m + 1) and (Gd, n), with group
counts that divide the channels. A gradient that is not asked for comes back as an empty tensor.

CPU tensors go to `katlib.cpu`, CUDA tensors to `katlib.cuda`. On any other device, and where those
cannot serve, `katlib.reference` runs. Autograd, `torch.compile`, `torch.export` and
`torch.jit.trace` all see the operator. The transforms of `torch.func` see an `autograd.Function`
that calls it. The export to ONNX, and a transform inside `torch.compile`, know only PyTorch's own
operators, so they get the plain arithmetic of `katlib.reference` instead.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from katlib import cpu, cuda
from katlib.reference import evaluate, evaluate_by_channel, gradients

LIBRARY = torch.library.Library("katlib", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
LIBRARY.define(
    "rational(Tensor x, Tensor numerator, Tensor denominator, int dim) -> Tensor", tags=TAGS
)
LIBRARY.define(
    "rational_backward(Tensor g, Tensor x, Tensor numerator, Tensor denominator, int dim, "
    "bool input_gradient, bool coefficient_gradients) -> (Tensor, Tensor, Tensor)",
    tags=TAGS,
)
# the types of x and of the coefficients
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The highest degree of which the polynomials of |x| = 10^6 with coefficients of 100, and what the
# gradients multiply them by, fit a float32. The kernels know it too.
HIGHEST_DEGREE_IN_FLOAT32 = 5
FORWARD = torch.ops.katlib.rational.default
BACKWARD = torch.ops.katlib.rational_backward.default

# Whether a transform of torch.func is running. PyTorch has no public name for it; without this one
# such transforms fail with PyTorch's own message, and all else works.
_transform_is_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    """F(x) for tensors that are known to fit; `katlib.rational` checks them."""
    if torch.onnx.is_in_onnx_export():
        return _for_export(x, numerator, denominator, dim)
    if _transform_is_active():
        transformed = reference_forward if torch.compiler.is_compiling() else _Rational.apply
        return transformed(x, numerator, denominator, dim)
    return FORWARD(x, numerator, denominator, dim)


# ---- the grouped form of a tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that the kernels compute in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def reference_dtype(x: Tensor, numerator: Tensor, denominator: Tensor) -> torch.dtype:
    """The type that the reference computes in.

    It is float64 too where powers of x may overflow in float32, except on Apple's GPUs, which have
    no float64.
    """
    degree = max(numerator.shape[1] - 1, denominator.shape[1])
    if degree > HIGHEST_DEGREE_IN_FLOAT32 and x.device.type != "mps":
        return torch.float64
    return compute_dtype(x)


def grouped_shape(
    sizes: Sequence[int], dim: int, numerator_groups: int, denominator_groups: int
) -> tuple[int, int, int]:
    """(rows, G, span) for a contiguous tensor of these sizes with channels in dimension `dim`.

    In contiguous memory a group of neighbouring channels is one contiguous span, whatever follows
    the channels, so that (..., C) and (N, C, H, W) become the same three numbers. G is the least
    common multiple of the two group counts.
    """
    groups = math.lcm(numerator_groups, denominator_groups)
    rows = math.prod(sizes[:dim])
    span = sizes[dim] // groups * math.prod(sizes[dim + 1 :])
    return rows, groups, span


def memory_shape(
    x: Tensor, dim: int, numerator: Tensor, denominator: Tensor
) -> tuple[int, int, int]:
    """(rows, G, span) of x's memory, for a dense x: contiguous, channels_last or transposed.

    Raises:
        ValueError: groups with which the kernels would read out of bounds.
    """
    # shape[0] and not len, which for a tensor takes as long as a dispatched call
    groups = numerator.shape[0], denominator.shape[0]
    return _memory_shape(x.shape, x.stride(), dim, *groups)


# It depends on sizes alone, and a model's tensors have a few that come again and again.
@functools.lru_cache(maxsize=1024)
def _memory_shape(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dim: int,
    numerator_groups: int,
    denominator_groups: int,
) -> tuple[int, int, int]:
    _check_groups(sizes[dim], numerator_groups, denominator_groups)
    rank = len(sizes)
    order = sorted(range(rank), key=lambda i: -strides[i])
    sizes_in_memory = [sizes[i] for i in order]
    channels = order.index(dim % rank)
    return grouped_shape(sizes_in_memory, channels, numerator_groups, denominator_groups)


def _check_groups(channels: int, numerator_groups: int, denominator_groups: int) -> None:
    """Raises a ValueError for groups with which the kernels would read out of bounds."""
    counts = numerator_groups, denominator_groups
    if not all(counts) or any(channels % groups for groups in counts):
        raise ValueError(
            f"{numerator_groups} and {denominator_groups} groups for {channels} channels; the "
            "groups must divide the channels"
        )


def with_layout_of(x: Tensor, t: Tensor) -> Tensor:
    """t with the strides that `torch.empty_like(x)` has, copied if it has others."""
    if x.is_contiguous() and t.is_contiguous():
        return t
    strides = torch.empty_like(x, device="meta").stride()
    return t if t.stride() == strides else torch.empty_like(x).copy_(t)


# ---- in plain PyTorch


def reference_forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    """The operator in plain PyTorch, differentiable any number of times."""
    dtype = reference_dtype(x, numerator, denominator)
    groups = numerator.shape[0], denominator.shape[0]
    parts = x.reshape(grouped_shape(x.shape, dim % x.ndim, *groups))
    y = evaluate(parts.to(dtype), numerator.to(dtype), denominator.to(dtype))
    return y.to(x.dtype).reshape(x.shape)


def _for_export(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    """The operator as plain arithmetic that other runtimes are quick at."""
    dtype = reference_dtype(x, numerator, denominator)
    a, b = numerator.to(dtype), denominator.to(dtype)
    return evaluate_by_channel(x.to(dtype), a, b, dim % x.ndim).to(x.dtype)


def reference_backward(
    g: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dim: int,
    input_gradient: bool = True,
    coefficient_gradients: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward in plain PyTorch, itself differentiable."""
    dtype = reference_dtype(x, numerator, denominator)
    shape = grouped_shape(x.shape, dim % x.ndim, numerator.shape[0], denominator.shape[0])
    parts, g = (t.reshape(shape).to(dtype) for t in (x, g))
    dx, da, db = gradients(g, parts, numerator.to(dtype), denominator.to(dtype))
    return (
        dx.to(x.dtype).reshape(x.shape) if input_gradient else x.new_empty(0),
        da.to(numerator.dtype) if coefficient_gradients else numerator.new_empty(0),
        db.to(denominator.dtype) if coefficient_gradients else denominator.new_empty(0),
    )


def _reference_forward_kernel(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> Tensor:
    return with_layout_of(x, reference_forward(x, numerator, denominator, dim))


def _reference_backward_kernel(
    g: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dim: int,
    input_gradient: bool,
    coefficient_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, da, db = reference_backward(
        g, x, numerator, denominator, dim, input_gradient, coefficient_gradients
    )
    return (with_layout_of(x, dx) if input_gradient else dx), da, db


LIBRARY.impl("rational", _reference_forward_kernel, "CompositeExplicitAutograd")
LIBRARY.impl("rational_backward", _reference_backward_kernel, "CompositeExplicitAutograd")


# ---- by the compiled kernels


def _kernel_arguments(
    x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    """x dense, the coefficients as they are computed with, and x's memory as (rows, G, span)."""
    x = with_layout_of(x, x)
    dtype = compute_dtype(x)
    a = numerator if numerator.dtype == dtype else numerator.to(dtype)
    b = denominator if denominator.dtype == dtype else denominator.to(dtype)
    return x, a.contiguous(), b.contiguous(), memory_shape(x, dim, a, b)


def _as_gradient(gradient: Tensor | None, coefficients: Tensor) -> Tensor:
    """A kernel's gradient in the coefficients' type; empty if it was not asked for."""
    if gradient is None:
        return coefficients.new_empty(0)
    return gradient if gradient.dtype == coefficients.dtype else gradient.to(coefficients.dtype)


def _register_kernels(
    device: str, backend: ModuleType, serves: Callable[[torch.dtype, int, int], bool]
) -> None:
    """Registers a backend for a device; what it does not serve, the reference does."""

    def forward(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
        if not serves(x.dtype, numerator.shape[1] - 1, denominator.shape[1]):
            _check_groups(x.shape[dim], numerator.shape[0], denominator.shape[0])
            return _reference_forward_kernel(x, numerator, denominator, dim)
        return backend.forward(*_kernel_arguments(x, numerator, denominator, dim))

    def backward(
        g: Tensor,
        x: Tensor,
        numerator: Tensor,
        denominator: Tensor,
        dim: int,
        input_gradient: bool,
        coefficient_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        asked = input_gradient, coefficient_gradients
        if not serves(x.dtype, numerator.shape[1] - 1, denominator.shape[1]):
            _check_groups(x.shape[dim], numerator.shape[0], denominator.shape[0])
            return _reference_backward_kernel(g, x, numerator, denominator, dim, *asked)
        g = with_layout_of(x, g)
        arguments = _kernel_arguments(x, numerator, denominator, dim)
        dx, da, db = backend.backward(g, *arguments, *asked)
        return (
            x.new_empty(0) if dx is None else dx,
            _as_gradient(da, numerator),
            _as_gradient(db, denominator),
        )

    LIBRARY.impl("rational", forward, device)
    LIBRARY.impl("rational_backward", backward, device)


def _cuda_serves(dtype: torch.dtype, m: int, n: int) -> bool:
    known = dtype in cuda.TYPES and m <= cuda.MAX_DEGREE and n <= cuda.MAX_DEGREE
    return known and cuda.available()


_register_kernels("CPU", cpu, cpu.available)
_register_kernels("CUDA", cuda, _cuda_serves)


# ---- shapes without numbers, for torch.compile and torch.export


@torch.library.register_fake("katlib::rational", lib=LIBRARY)
def _(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("katlib::rational_backward", lib=LIBRARY)
def _(
    g: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dim: int,
    input_gradient: bool,
    coefficient_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x) if input_gradient else x.new_empty(0),
        torch.empty_like(numerator) if coefficient_gradients else numerator.new_empty(0),
        torch.empty_like(denominator) if coefficient_gradients else denominator.new_empty(0),
    )


# ---- derivatives: the first by the kernels, higher ones through the reference


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor, backward: Callable = BACKWARD) -> tuple[Tensor | None, ...]:
    x_wanted, numerator_wanted, denominator_wanted, _ = ctx.needs_input_grad
    coefficients_wanted = numerator_wanted or denominator_wanted
    dx, da, db = backward(g, *ctx.saved_tensors, ctx.dim, x_wanted, coefficients_wanted)
    return (
        dx if x_wanted else None,
        da if numerator_wanted else None,
        db if denominator_wanted else None,
        None,
    )


def _save_for_double_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, dim, input_gradient, coefficient_gradients = inputs
    ctx.arguments = dim, input_gradient, coefficient_gradients
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *gradients_of_gradients: Tensor) -> tuple[Tensor | None, ...]:
    def backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference_backward(g, x, a, b, *ctx.arguments)

    pull_back = torch.func.vjp(backward, *ctx.saved_tensors)[1]
    return *pull_back(gradients_of_gradients), None, None, None


torch.library.register_autograd(
    "katlib::rational", _backward, setup_context=_save_for_backward, lib=LIBRARY
)
torch.library.register_autograd(
    "katlib::rational_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
    lib=LIBRARY,
)


# ---- torch.func: PyTorch differentiates no operator with register_autograd under its transforms,
# only an autograd.Function, and takes the rule for vmap from the operator


class _Rational(torch.autograd.Function):
    """`katlib::rational` for the transforms of torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(FORWARD)
    setup_context = staticmethod(_save_for_backward)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, g, _RationalBackward.apply)


class _RationalBackward(torch.autograd.Function):
    """`katlib::rational_backward` for the transforms of torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(BACKWARD)
    setup_context = staticmethod(_save_for_double_backward)
    backward = staticmethod(_double_backward)


def _mapped_first(batch: int, t: Tensor, in_dim: int | None) -> Tensor:
    """t with the mapped dimension in front, expanded if it is not mapped."""
    return t.expand(batch, *t.shape) if in_dim is None else t.movedim(in_dim, 0)


def _into_channels(batch: int, t: Tensor, in_dim: int | None, dim: int) -> Tensor:
    """t, whose channels are in dimension `dim`, with the batch as a part of the channels.

    (B, ..., C, ...) becomes (..., B C, ...): each sample's groups are groups of their own.
    """
    return _mapped_first(batch, t, in_dim).movedim(0, dim).flatten(dim, dim + 1)


@torch.library.register_vmap("katlib::rational", lib=LIBRARY)
def _(
    info: Any, in_dims: tuple, x: Tensor, numerator: Tensor, denominator: Tensor, dim: int
) -> tuple[Tensor, int]:
    batch, (x_dim, *coefficient_dims, _) = info.batch_size, in_dims
    rank = x.ndim if x_dim is None else x.ndim - 1
    dim = dim % rank
    if coefficient_dims == [None, None]:
        return FORWARD(x.movedim(x_dim, 0), numerator, denominator, dim + 1), 0
    x = _into_channels(batch, x, x_dim, dim)
    a, b = (
        _into_channels(batch, c, c_dim, 0)
        for c, c_dim in zip((numerator, denominator), coefficient_dims)
    )
    return FORWARD(x, a, b, dim).unflatten(dim, (batch, -1)), dim


@torch.library.register_vmap("katlib::rational_backward", lib=LIBRARY)
def _(
    info: Any,
    in_dims: tuple,
    g: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    dim: int,
    *asked: bool,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    batch = info.batch_size
    rank = x.ndim if in_dims[1] is None else x.ndim - 1
    dim = dim % rank
    g = _into_channels(batch, g, in_dims[0], dim)
    x = _into_channels(batch, x, in_dims[1], dim)
    a = _into_channels(batch, numerator, in_dims[2], 0)
    b = _into_channels(batch, denominator, in_dims[3], 0)
    input_gradient, coefficient_gradients = asked
    dx, da, db = BACKWARD(g, x, a, b, dim, *asked)
    gradients = (
        dx.unflatten(dim, (batch, -1)) if input_gradient else dx,
        da.unflatten(0, (batch, -1)) if coefficient_gradients else da,
        db.unflatten(0, (batch, -1)) if coefficient_gradients else db,
    )
    coefficient_dim = 0 if coefficient_gradients else None
    return gradients, (dim if input_gradient else None, coefficient_dim, coefficient_dim)
