"""A KAN layer with B-splines on its edges, as in the KAN paper.

    y_o = sum_i [ w_oi silu(x_i) + sum_k c_oik B_k(x_i) ]

(Liu et al., arXiv 2404.19756, equations 2.10 to 2.12). Every edge (i, o) has its own function: a
SiLU with a weight, and a spline of `grid + order` coefficients. The layer is here to be understood
and measured. It is expensive, which is why KAT exists.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from katlib.init import gain


def bspline_basis(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """The B-spline basis functions of degree `order` at x, by the Cox-de Boor recursion.

    Args:
        x: any shape.
        knots: (k,), increasing.
        order: degree of the splines: 0 for steps, 3 for cubics.

    Returns:
        (*x.shape, k - 1 - order). Between knots[order] and knots[-1 - order], where every basis
        function that reaches x is there, they sum to 1.

    Raises:
        ValueError: fewer than `order` + 2 knots, or a negative order.
    """
    if order < 0 or len(knots) < order + 2:
        raise ValueError(
            f"order={order} with {len(knots)} knots; allowed are order >= 0 and at least order + 2 "
            "knots"
        )
    x = x[..., None]
    basis = ((knots[:-1] <= x) & (x < knots[1:])).to(x.dtype)  # (..., k - 1)
    for d in range(1, order + 1):
        left = (x - knots[: -d - 1]) / (knots[d:-1] - knots[: -d - 1]) * basis[..., :-1]
        right = (knots[d + 1 :] - x) / (knots[d + 1 :] - knots[1:-d]) * basis[..., 1:]
        basis = left + right  # (..., k - 1 - d)
    return basis


class SplineKAN(nn.Module):
    """A B-spline KAN layer: in_features * out_features learned functions of one variable.

    Args:
        in_features, out_features: sizes of the last dimension before and after.
        grid: number of intervals that divide `interval`.
        order: degree of the splines (3: cubic).
        interval: (lo, hi), where the splines live; outside, only the SiLU part is left.

    Input (..., in_features), output (..., out_features).

    Parameters:
        base_weight: (out_features, in_features), w of the SiLU part; variance-preserving for it at
            the start.
        spline_weight: (out_features, in_features, grid + order), the coefficients c; drawn from
            N(0, 0.1^2 / in_features) at the start.

    Raises:
        ValueError: sizes, grid or order that are too small, or an empty interval.

    Example:
        >>> katlib.SplineKAN(2, 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    knots: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: int = 5,
        order: int = 3,
        interval: tuple[float, float] = (-1.0, 1.0),
    ):
        super().__init__()
        lo, hi = interval
        if min(in_features, out_features, grid) < 1 or order < 0 or not lo < hi:
            raise ValueError(
                f"in_features={in_features}, out_features={out_features}, grid={grid}, "
                f"order={order}, interval={interval}: allowed are sizes and grid >= 1, order >= 0 "
                "and lo < hi"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.grid = grid
        self.order = order
        # the recursion needs `order` more knots at each end
        knots = torch.arange(-order, grid + order + 1) * ((hi - lo) / grid) + lo
        self.register_buffer("knots", knots)
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid + order))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both sets of weights anew."""
        nn.init.normal_(self.base_weight, std=math.sqrt(gain("swish") / self.in_features))
        nn.init.normal_(self.spline_weight, std=0.1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; its last dimension must be {self.in_features}"
            )
        basis = bspline_basis(x, self.knots, self.order)  # (..., in, grid + order)
        splines = F.linear(basis.flatten(-2), self.spline_weight.flatten(1))
        return F.linear(F.silu(x), self.base_weight) + splines

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, grid={self.grid}, order={self.order}"
