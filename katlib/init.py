"""Variance-preserving initialisation: weights scaled so that a signal keeps its size at any depth.

For y = W F(x) with independent weights of mean 0,

    E[y^2] = d_in Var[w] E[F(x)^2].

If x ~ N(0, 1), the size is kept when Var[w] = alpha / d_in with the gain alpha = 1 / E[F(z)^2],
z ~ N(0, 1) (arXiv 2409.10594, section 4.3; He et al., arXiv 1502.01852).

This gain is a factor of the variance. `torch.nn.init.calculate_gain` returns its square root, a
factor of the standard deviation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from katlib.fit import TARGETS, resolve_target
from katlib.rational import Coefficients, GroupRational, assign_, is_distributed, whole

# What can stand before a linear layer: a name in `katlib.fit.TARGETS`, a function of a tensor, or a
# learned activation
Activation = str | Callable[[Tensor], Tensor] | GroupRational

# of the Gauss-Hermite rule, which is exact for polynomials up to degree 199
NODES = 100

# points on which the law of singular values is integrated
LAW_POINTS = 4000


@functools.cache
def gauss_hermite() -> tuple[np.ndarray, np.ndarray]:
    """Nodes z and weights w, both (NODES,) float64: E[f(z)] = sum w f(z) for z ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


@torch.no_grad()
def gain(activation: Activation) -> float:
    """alpha = 1 / E[F(z)^2] for z ~ N(0, 1), by Gauss-Hermite quadrature in float64.

    Args:
        activation: a function from a float64 tensor to one of the same shape; a name in
            `katlib.fit.TARGETS`; or a `GroupRational`, for which E[F^2] is averaged over its
            groups.

    Raises:
        ValueError: an unknown name, an activation that is 0 wherever z has weight, or a
            `GroupRational` on the meta device, which has no numbers.

    Example:
        >>> round(katlib.gain("relu"), 6)
        2.0
    """
    if isinstance(activation, GroupRational):
        return _gain_of_coefficients(*_coefficients(activation))
    if isinstance(activation, str) and activation in GAINS:
        return GAINS[activation]
    return _gain_of_function(resolve_target(activation))


def gain_at_start(activation: Activation) -> float:
    """`gain(activation)`, of a `GroupRational` with the coefficients that it starts from.

    It reads none of the layer's tensors, which may be on the meta device, fake or not yet filled.
    """
    if isinstance(activation, GroupRational) and activation.start is not None:
        return _gain_of_coefficients(*activation.start)
    return gain(activation)


def _coefficients(activation: GroupRational) -> tuple[Coefficients, Coefficients]:
    """A layer's numerators and denominators as they stand."""
    weights = (activation.weight_numerator, activation.weight_denominator)
    if any(weight.is_meta for weight in weights):
        raise ValueError(
            "the GroupRational is on the meta device and has no numbers yet; call to_empty and "
            "reset_parameters first"
        )
    a, b = (tuple(map(tuple, whole(weight).tolist())) for weight in weights)
    return a, b


# a model has a few different starts, and asks for each again in every block
@functools.lru_cache(maxsize=64)
def _gain_of_coefficients(a: Coefficients, b: Coefficients) -> float:
    """The gain of a group-rational function with these numerators and denominators.

    In NumPy, for there are no plain numbers to be had from tensors in a `FakeTensorMode`.
    """
    z, weights = gauss_hermite()
    groups = math.lcm(len(a), len(b))
    P = np.stack([np.polynomial.Polynomial(row)(z) for row in a])
    Q = np.stack([np.polynomial.Polynomial([1.0, *map(abs, row)])(abs(z)) for row in b])
    F = P.repeat(groups // len(a), 0) / Q.repeat(groups // len(b), 0)  # (groups, NODES)
    return _inverse((F**2 @ weights).mean())


def _gain_of_function(function: Callable[[Tensor], Tensor]) -> float:
    z, weights = map(torch.from_numpy, gauss_hermite())
    return _inverse((weights @ function(z) ** 2).item())


def _inverse(second_moment: float) -> float:
    if not second_moment > 0:
        raise ValueError(
            f"E[F(z)^2] is {second_moment}; an activation that is 0 everywhere has no gain"
        )
    return float(1 / second_moment)


# as plain numbers, which are there in a `FakeTensorMode` too
GAINS = {name: _gain_of_function(function) for name, function in TARGETS.items()}


def undrawn_linear(
    in_features: int,
    out_features: int,
    bias: bool = True,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """`nn.Linear` without its own draw, which would be replaced at once.

    Its weights are whatever the memory holds, until it is initialised.
    """
    layer = nn.Linear(in_features, out_features, bias, device="meta", dtype=dtype)
    # torch.nn.utils.skip_init does this by to_empty, which fails in a FakeTensorMode
    for name, parameter in list(layer.named_parameters()):
        memory = torch.empty(parameter.shape, device=device, dtype=parameter.dtype)
        setattr(layer, name, nn.Parameter(memory))
    return layer


def reset_by(layer: nn.Module, draw: Callable[[], object]) -> None:
    """Makes `draw` what `layer.reset_parameters()` does.

    Whatever initialises a model that was built on the meta device calls `reset_parameters` of its
    modules, in an order of its own: FSDP only of those that have parameters themselves. PyTorch's
    own draw of a linear layer would undo ours. This replaces the method of one layer, and makes no
    subclass, since tools like `quantize_dynamic` look for the type `nn.Linear` itself.

    Args:
        layer: any module.
        draw: fills the layer. To be copied and pickled with the layer, a bound method or a
            `functools.partial`, not a lambda.
    """
    layer.reset_parameters = draw  # type: ignore[assignment]


@torch.no_grad()
def variance_preserving_(linear: nn.Linear, activation: Activation | float = "identity") -> None:
    """Draws the weights of `linear` from N(0, gain(activation) / in_features), in place.

    The bias becomes 0. A layer on the meta device has no numbers and is left as it is.

    Args:
        linear: the layer that follows the activation.
        activation: what stands before it, as in `gain`; or its gain, a number.
    """
    if linear.weight.is_meta:
        return
    alpha = activation if isinstance(activation, (int, float)) else gain(activation)
    normal_(linear.weight, math.sqrt(alpha / linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def normal_(weight: Tensor, std: float) -> Tensor:
    """Draws `weight` from N(0, std^2), in place; returns it."""
    _fill(weight, lambda weight: weight.normal_(0, std))
    return weight


@torch.no_grad()
def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Draws `weight` from N(0, std^2), cut at 6 std, in place; returns it.

    A seed gives the same numbers in every version of torch. `torch.nn.init.trunc_normal_` does not:
    torch 2.15 draws other numbers than torch 2.11.
    """

    def draw(weight: Tensor) -> Tensor:
        uniform = weight.uniform_(-1, 1)
        return uniform.erfinv_().mul_(std * math.sqrt(2)).clamp_(-6 * std, 6 * std)

    _fill(weight, draw)
    return weight


def _fill(weight: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    """Fills `weight` by `draw`, which fills a tensor in place.

    Half types are drawn in float32: bfloat16 has only 256 uniform numbers between 0.5 and 1. Of a
    DTensor every process draws the whole, so a seed gives the weights that one process gives.
    """
    dtype = _drawn_dtype(weight)
    if dtype == weight.dtype and not is_distributed(weight):
        draw(weight)
    else:
        assign_(weight, draw(torch.empty(weight.shape, dtype=dtype, device=weight.device)))


def _drawn_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


@torch.no_grad()
def mimetic_(
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    query_key: tuple[float, float] = (0.7, 0.7),
    value_proj: tuple[float, float] = (0.4, 0.4),
) -> None:
    """Mimetic initialisation of an attention layer, in place, as KAT uses it.

    In the heads of trained transformers W_q^T W_k is close to a positive multiple of the identity,
    and W_proj W_v close to a negative one (Trockman & Kolter, arXiv 2305.09828). So W_proj W_v
    starts at alpha Z - beta I, with Z ~ N(0, 1 / dim). A head's W_q^T W_k has only the rank
    dim / num_heads; it starts like the best approximation, of that rank, of alpha Z + beta I. The
    paper computes it by a singular value decomposition for each head. Here it is drawn from the law
    that such decompositions follow (`_query_and_key`), which is many times as fast.

    Biases start at 0. Layers on the meta device have no numbers and are left as they are.

    Args:
        qkv: (3 dim, dim) weights, the heads of q, then of k, then of v.
        proj: (dim, dim) weights.
        num_heads: number of heads; divides dim.
        query_key, value_proj: (alpha, beta) of the two products.
    """
    if qkv.weight.is_meta or proj.weight.is_meta:
        return
    like = torch.empty(0, dtype=_drawn_dtype(qkv.weight), device=qkv.weight.device)
    dim = proj.in_features
    rows = _random_orthogonal(like, dim)
    q, k = _query_and_key(rows, num_heads, *query_key)
    alpha, beta = value_proj
    # with the signs of a random half of its columns changed it serves as a second orthogonal
    # matrix, without a second decomposition: its rows are nearly as far from the first one's as
    # independent ones would be
    uniform = like.new_empty(dim).uniform_()
    signs = torch.where(uniform < uniform.median(), -1.0, 1.0).to(like)
    left, v = _factors(rows * signs, alpha, -beta)
    assign_(qkv.weight, torch.cat([q, k, v]))
    assign_(proj.weight, left)
    for layer in (qkv, proj):
        if layer.bias is not None:
            layer.bias.zero_()


def _factors(O: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Matrices of one size with left @ right = alpha Z + beta I, all (dim, dim).

    `right` is a multiple of the orthogonal matrix O. Z is G O, which for a G of N(0, 1 / dim) is
    N(0, 1 / dim) as well, so Z itself is not needed.
    """
    G = torch.empty_like(O).normal_(0, 1 / math.sqrt(len(O)))
    # the root mean square of the product's singular values
    size = math.hypot(alpha, beta) or 1.0
    return (alpha * G + beta * O.T) / math.sqrt(size), math.sqrt(size) * O


def _random_orthogonal(like: Tensor, dim: int) -> Tensor:
    # Apple's GPUs have no QR decomposition
    device = "cpu" if like.device.type == "mps" else like.device
    return nn.init.orthogonal_(torch.empty(dim, dim, dtype=like.dtype, device=device)).to(like)


def _query_and_key(
    rows: Tensor, num_heads: int, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """W_q and W_k of all heads, both (dim, dim).

    In a head, row i of W_k is sqrt(s_i) v_i and row i of W_q is sqrt(s_i) u_i, with the largest
    singular values s_i of alpha Z + beta I. Their law and that of c_i = u_i . v_i is known
    (`_largest_singular_values`), and Z prefers no direction. So the v_i are random orthonormal
    directions and u_i = c_i v_i + sqrt(1 - c_i^2) w_i, with other random orthonormal directions
    w_i. All are rows of one orthogonal matrix, `rows`: a head's v_i are the next head's w_i.

    Measured against decompositions of drawn matrices, at 96 to 768 channels with 3 to 12 heads: the
    singular values, the energy |W_q^T W_k|^2 and the mean of its diagonal are the same to 2%, with
    768 channels to 0.5%. The products are a little more symmetric: |A - A^T| / |A| of A = W_q^T W_k
    is 0.73 rather than 0.75 with 12 heads, and 0.76 rather than 0.83 with 3. Unlike there, the
    heads' directions are orthogonal to each other, and a head's channels are in random order rather
    than from its largest singular value to its smallest.
    """
    if num_heads == 1:
        # of full rank, so there is nothing to approximate
        left, right = _factors(rows, alpha, beta)
        return left.T, right
    dim = len(rows)
    head_dim = dim // num_heads
    order = rows.new_empty(num_heads, head_dim).uniform_().argsort(-1)
    law = _largest_singular_values(alpha, beta, dim, head_dim)
    s, c = (rows.new_tensor(values)[order][..., None] for values in law)
    v = rows.view(num_heads, head_dim, dim)
    w = v.roll(1, 0)
    q, k = s.sqrt() * (c * v + (1 - c**2).sqrt() * w), s.sqrt() * v
    return q.reshape(dim, dim), k.reshape(dim, dim)


@functools.cache
def _largest_singular_values(
    alpha: float, beta: float, dim: int, rank: int
) -> tuple[list[float], list[float]]:
    """The `rank` largest singular values s of alpha Z + beta I, and the cosines c = u . v.

    u and v are a value's left and right singular vector, and Z is (dim, dim) of N(0, 1 / dim). For
    a large dim, s has a density without chance (Dozier & Silverstein, Journal of Multivariate
    Analysis 98, 2007). With b = beta / alpha, its resolvent is g(s) = t / (t^2 - b^2) at the
    complex t = x + i y that solves s / alpha = t + g. Where the imaginary part of s is 0,

        |t|^2 = 1/2 - b^2 + sqrt(1/4 + 4 b^2 x^2)      s = 2 alpha x |t|^2 / (|t|^2 + b^2)
        density = 2 y / (pi alpha)                     c = 2 b x / (|t|^2 + b^2)

    Returns:
        s and c, at the middles of the `rank` largest parts of 1 / dim of all values.
    """
    if alpha == 0:
        return [abs(beta)] * rank, [math.copysign(1.0, beta)] * rank
    alpha = abs(alpha)
    b = beta / alpha
    # y = 0 at the largest x, which belongs to the largest s
    x = np.linspace(0, math.sqrt(0.5 + b**2 + math.sqrt(0.25 + 2 * b**2)), LAW_POINTS)[::-1]
    t2 = 0.5 - b**2 + np.sqrt(0.25 + 4 * b**2 * x**2)
    y = np.sqrt(np.maximum(t2 - x**2, 0))
    s = 2 * x * t2 / (t2 + b**2)
    c = 2 * b * x / (t2 + b**2)
    slices = -(y[1:] + y[:-1]) / np.pi * np.diff(s)
    share = np.concatenate([[0.0], slices.cumsum()])  # of the values that are above s
    middles = (np.arange(rank) + 0.5) / dim
    return (alpha * np.interp(middles, share, s)).tolist(), np.interp(middles, share, c).tolist()
