"""Variance-preserving initialisation: weights scaled so that a signal keeps its size through any number of layers.

For y = W F(x) with independent weights of mean 0,  E[y^2] = d_in Var[w] E[F(x)^2].  If x ~ N(0, 1), the size is kept when
Var[w] = alpha / d_in with the gain alpha = 1 / E[F(z)^2], z ~ N(0, 1) (arXiv 2409.10594, section 4.3; He et al., arXiv 1502.01852).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from katlib.fit import resolve_target
from katlib.rational import GroupRational, rational_reference

NODES = 100  # of the Gauss-Hermite rule: exact for polynomials up to degree 199


@torch.no_grad()
def gain(activation: str | Callable[[Tensor], Tensor] | GroupRational) -> float:
    """alpha = 1 / E[F(z)^2] for z ~ N(0, 1), by Gauss-Hermite quadrature in float64.

    Args:
        activation: a function from a float64 tensor to one of the same shape; a name in `katlib.fit.TARGETS`; or a
            `GroupRational`, for which E[F^2] is averaged over its groups.

    Raises:
        ValueError: an unknown name, or an activation that is 0 wherever z has weight.

    Example:
        >>> round(katlib.gain("relu"), 6)
        2.0
    """
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(NODES))
    weights = weights / weights.sum()  # (nodes,), a probability
    if isinstance(activation, GroupRational):
        a, b = (
            p.detach().double().cpu()
            for p in (activation.weight_numerator, activation.weight_denominator)
        )
        groups = math.lcm(len(a), len(b))
        values = rational_reference(nodes[:, None].expand(-1, groups), a, b)  # (nodes, groups)
        second_moment = (weights @ values**2).mean().item()
    else:
        second_moment = (weights @ resolve_target(activation)(nodes) ** 2).item()
    if not second_moment > 0:
        raise ValueError(
            f"E[F(z)^2] is {second_moment}; an activation that is 0 everywhere has no gain"
        )
    return 1 / second_moment


@torch.no_grad()
def variance_preserving_(
    linear: nn.Linear, activation: str | Callable[[Tensor], Tensor] | GroupRational = "identity"
) -> None:
    """Draws the weights of `linear` from N(0, gain(activation) / in_features) and sets its bias to 0, in place.

    Args:
        linear: the layer that follows the activation.
        activation: what stands before it, as in `gain`.

    A layer on the meta device has no numbers and is left as it is.
    """
    if linear.weight.is_meta:
        return
    linear.weight.normal_(0, math.sqrt(gain(activation) / linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Draws `weight` from N(0, std^2), cut at 6 std, in place. `torch.nn.init.trunc_normal_` drew the same numbers until it took another way, in some version
    after 2.11; so a seed gives the same weights in every version of torch."""
    return weight.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-6 * std, 6 * std)


@torch.no_grad()
def mimetic_(
    qkv: nn.Linear, proj: nn.Linear, num_heads: int, query_key=(0.7, 0.7), value_proj=(0.4, 0.4)
) -> None:
    """Mimetic initialisation of an attention layer, in place (Trockman & Kolter, arXiv 2305.09828), as KAT uses it.

    Trained transformers have, in each head, W_q^T W_k close to a positive multiple of the identity, and W_proj W_v close to a
    negative one. So each product starts at alpha Z + beta I (query and key) or alpha Z - beta I (value and projection), with
    Z ~ N(0, 1 / dim), factored by a singular value decomposition; biases start at 0.

    Args:
        qkv: (3 dim, dim) weights, the heads of q, then of k, then of v.
        proj: (dim, dim) weights.
        num_heads: number of heads; divides dim.
        query_key, value_proj: (alpha, beta) of the two products.
    """
    if qkv.weight.is_meta:  # no numbers to draw, and 13 decompositions to save
        return
    dim = proj.in_features
    head = dim // num_heads

    def factors(alpha: float, beta: float) -> tuple[Tensor, Tensor]:
        Z = torch.randn(dim, dim, device=qkv.weight.device) / math.sqrt(dim)
        U, S, Vh = torch.linalg.svd(alpha * Z + beta * torch.eye(dim, device=Z.device))
        return U * S.sqrt(), S.sqrt()[:, None] * Vh  # left @ right = alpha Z + beta I

    q, k, v = qkv.weight.view(3, dim, dim).unbind(0)
    for h in range(num_heads):
        left, right = factors(*query_key)
        q[h * head : (h + 1) * head] = left[
            :, :head
        ].T  # the head's best approximation of rank head
        k[h * head : (h + 1) * head] = right[:head]
    left, right = factors(value_proj[0], -value_proj[1])
    v.copy_(right)
    proj.weight.copy_(left)
    for layer in (qkv, proj):
        if layer.bias is not None:
            layer.bias.zero_()
