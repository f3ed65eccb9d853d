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

import numpy as np
import torch
from torch import Tensor, nn

from katlib.fit import resolve_target
from katlib.rational import GroupRational, rational_reference

# What can stand before a linear layer: a name in `katlib.fit.TARGETS`, a function of a tensor, or a
# learned activation
Activation = str | Callable[[Tensor], Tensor] | GroupRational

# of the Gauss-Hermite rule, which is exact for polynomials up to degree 199
NODES = 100


@functools.cache
def gauss_hermite() -> tuple[Tensor, Tensor]:
    """Nodes z and weights w, both (NODES,) float64: E[f(z)] = sum w f(z) for z ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@torch.no_grad()
def gain(activation: Activation) -> float:
    """alpha = 1 / E[F(z)^2] for z ~ N(0, 1), by Gauss-Hermite quadrature in float64.

    Args:
        activation: a function from a float64 tensor to one of the same shape; a name in
            `katlib.fit.TARGETS`; or a `GroupRational`, for which E[F^2] is averaged over its
            groups.

    Raises:
        ValueError: an unknown name, or an activation that is 0 wherever z has weight.

    Example:
        >>> round(katlib.gain("relu"), 6)
        2.0
    """
    nodes, weights = gauss_hermite()
    if isinstance(activation, GroupRational):
        values = _values_of_groups(activation, nodes)  # (nodes, groups)
    else:
        values = resolve_target(activation)(nodes)  # (nodes,)
    second_moment = (weights @ values**2).mean().item()
    if not second_moment > 0:
        raise ValueError(
            f"E[F(z)^2] is {second_moment}; an activation that is 0 everywhere has no gain"
        )
    return 1 / second_moment


def _values_of_groups(activation: GroupRational, x: Tensor) -> Tensor:
    """Each group's function at the points x (N,): (N, groups) float64."""
    a = activation.weight_numerator.detach().double().cpu()
    b = activation.weight_denominator.detach().double().cpu()
    groups = math.lcm(len(a), len(b))
    return rational_reference(x[:, None].expand(-1, groups), a, b)


@torch.no_grad()
def variance_preserving_(linear: nn.Linear, activation: Activation = "identity") -> None:
    """Draws the weights of `linear` from N(0, gain(activation) / in_features), in place.

    The bias becomes 0. A layer on the meta device has no numbers and is left as it is.

    Args:
        linear: the layer that follows the activation.
        activation: what stands before it, as in `gain`.
    """
    if linear.weight.is_meta:
        return
    linear.weight.normal_(0, math.sqrt(gain(activation) / linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Draws `weight` from N(0, std^2), cut at 6 std, in place; returns it.

    A seed gives the same numbers in every version of torch. `torch.nn.init.trunc_normal_` does not:
    torch 2.15 draws other numbers than torch 2.11.
    """
    uniform = weight.uniform_(-1, 1)
    return uniform.erfinv_().mul_(std * math.sqrt(2)).clamp_(-6 * std, 6 * std)


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
    and W_proj W_v close to a negative one (Trockman & Kolter, arXiv 2305.09828). So each product
    starts at alpha Z + beta I (query and key) or alpha Z - beta I (value and projection), with
    Z ~ N(0, 1 / dim), factored by a singular value decomposition. Biases start at 0. Layers on the
    meta device have no numbers and are left as they are.

    Args:
        qkv: (3 dim, dim) weights, the heads of q, then of k, then of v.
        proj: (dim, dim) weights.
        num_heads: number of heads; divides dim.
        query_key, value_proj: (alpha, beta) of the two products.
    """
    if qkv.weight.is_meta:
        return
    dim = proj.in_features
    head_dim = dim // num_heads
    q, k, v = qkv.weight.view(3, dim, dim).unbind(0)
    alpha, beta = query_key
    for start in range(0, dim, head_dim):
        # the first head_dim singular vectors: the best approximation of that rank
        left, right = _random_factors(dim, alpha, beta, qkv.weight.device)
        q[start : start + head_dim] = left[:, :head_dim].T
        k[start : start + head_dim] = right[:head_dim]
    alpha, beta = value_proj
    left, right = _random_factors(dim, alpha, -beta, qkv.weight.device)
    v.copy_(right)
    proj.weight.copy_(left)
    for layer in (qkv, proj):
        if layer.bias is not None:
            layer.bias.zero_()


def _random_factors(
    dim: int, alpha: float, beta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Matrices with left @ right = alpha Z + beta I, Z ~ N(0, 1 / dim), all (dim, dim)."""
    Z = torch.randn(dim, dim, device=device) / math.sqrt(dim)
    U, S, Vh = torch.linalg.svd(alpha * Z + beta * torch.eye(dim, device=device))
    return U * S.sqrt(), S.sqrt()[:, None] * Vh
