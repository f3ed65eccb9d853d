"""A KAN layer with B-splines on its edges, as in the KAN paper.

    y_o = sum_i [ w_oi silu(x_i) + sum_k c_oik B_k(x_i) ]

(Liu et al., arXiv 2404.19756, equations 2.10 to 2.12). Every edge (i, o) has its own function: a
SiLU with a weight, and a spline of `grid + order` coefficients. The layer is here to be understood
and measured. It is expensive, which is why KAT exists.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from katlib.init import gain

# weight of the interval, against 1 for the samples, when coefficients are fitted to moved knots
ELSEWHERE = 1e-3


def bspline_basis(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """The B-spline basis functions of degree `order` at x, by the Cox-de Boor recursion.

    Args:
        x: any shape.
        knots: (k,), increasing; or (in_features, k), knots of its own for each entry of x's last
            dimension.
        order: degree of the splines: 0 for steps, 3 for cubics.

    Returns:
        (*x.shape, k - 1 - order). Between knots[order] and knots[-1 - order], where every basis
        function that reaches x is there, they sum to 1.

    Raises:
        ValueError: fewer than `order` + 2 knots, or a negative order.
    """
    if order < 0 or knots.shape[-1] < order + 2:
        raise ValueError(
            f"order={order} with {knots.shape[-1]} knots; allowed are order >= 0 and at least "
            "order + 2 knots"
        )
    x = x[..., None]
    t = knots
    basis = ((t[..., :-1] <= x) & (x < t[..., 1:])).to(x.dtype)  # (..., k - 1)
    for d in range(1, order + 1):
        left = (x - t[..., : -d - 1]) / (t[..., d:-1] - t[..., : -d - 1]) * basis[..., :-1]
        right = (t[..., d + 1 :] - x) / (t[..., d + 1 :] - t[..., 1:-d]) * basis[..., 1:]
        basis = left + right  # (..., k - 1 - d)
    return basis


class SplineKAN(nn.Module):
    """A B-spline KAN layer: in_features * out_features learned functions of one variable.

    Args:
        in_features, out_features: sizes of the last dimension before and after.
        grid: number of intervals that divide `interval`.
        order: degree of the splines (3: cubic).
        interval: (lo, hi), where the splines live at the start; outside, only the SiLU part is
            left. `update_grid` moves the splines to where the inputs are.

    Input (..., in_features), output (..., out_features).

    Parameters:
        base_weight: (out_features, in_features), w of the SiLU part; variance-preserving for it at
            the start.
        spline_weight: (out_features, in_features, grid + order), the coefficients c; drawn from
            N(0, 0.1^2 / in_features) at the start.

    Buffer:
        knots: (k,) with k = grid + 2 order + 1, even and shared by all inputs; after `update_grid`
            (in_features, k). A state dict of either kind can be loaded.

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
        self.interval = interval
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid + order))
        self.register_buffer("knots", self._even_knots())
        self.register_load_state_dict_pre_hook(_take_shape_of_knots)
        self.reset_parameters()

    def _even_knots(self) -> Tensor:
        """The knots that divide `interval` evenly, (k,)."""
        lo, hi = self.interval
        # the recursion needs `order` more knots at each end
        first, last = -self.order, self.grid + self.order
        weight = self.base_weight
        places = torch.arange(first, last + 1, dtype=weight.dtype, device=weight.device)
        return places * ((hi - lo) / self.grid) + lo

    def reset_parameters(self) -> None:
        """Draws both sets of weights anew and spreads the knots evenly on `interval` again."""
        self.knots = self._even_knots()
        nn.init.normal_(self.base_weight, std=math.sqrt(gain("swish") / self.in_features))
        nn.init.normal_(self.spline_weight, std=0.1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        self._check_channels(x)
        basis = bspline_basis(x, self.knots, self.order)  # (..., in, grid + order)
        splines = F.linear(basis.flatten(-2), self.spline_weight.flatten(1))
        return F.linear(F.silu(x), self.base_weight) + splines

    def _check_channels(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; its last dimension must be {self.in_features}"
            )

    # the knots are used in training later, so they must not become inference tensors
    @torch.inference_mode(False)
    @torch.no_grad()
    def update_grid(self, x: Tensor, grid_eps: float = 0.02, margin: float = 0.01) -> None:
        """Moves the knots of each input to where its values are, and keeps the functions.

        The new intervals hold equally many of the values, mixed with equally long intervals. Then
        the spline coefficients are fitted by least squares, so that the layer's outputs change as
        little as the new knots allow. It is the grid extension of the KAN paper (section 2.5),
        known as `update_grid_from_samples` in pykan and `update_grid` in efficient-kan. Call it now
        and then during training, on a batch of the layer's inputs; in distributed training, on the
        same batch in every process. Optimisers keep their parameters.

        The fit also holds each function, with a small weight, between and beyond the samples. So
        few samples, or samples that repeat, do no harm. An input that is constant keeps its knots,
        or if they do not reach the constant has them moved there.

        Args:
            x: (..., in_features), inputs of this layer; of any floating-point dtype.
            grid_eps: share of the even grid, 0 to 1; 1 gives equally long intervals.
            margin: how far the grid reaches beyond the smallest and the largest value, as a share
                of their distance.

        Raises:
            ValueError: no samples, samples that are not finite, another last dimension, or a
                share out of range.

        Example:
            >>> layer = katlib.SplineKAN(1, 1)
            >>> layer.update_grid(torch.linspace(4, 9, 100)[:, None])
            >>> layer.knots[0, 3:-3]  # the ends of the 5 intervals
            tensor([3.9500, 4.9994, 5.9998, 7.0002, 8.0006, 9.0500])
        """
        self._check_channels(x)
        if not (0 <= grid_eps <= 1 and margin >= 0):
            raise ValueError(
                f"grid_eps={grid_eps}, margin={margin}; allowed are 0 <= grid_eps <= 1 and "
                "margin >= 0"
            )
        # in float64 on the CPU: not every device has that, nor a solver for deficient systems
        samples = x.detach().cpu().double().reshape(-1, self.in_features)
        if len(samples) == 0 or not samples.isfinite().all():
            raise ValueError(f"x of shape {tuple(x.shape)} must hold samples, all of them finite")
        places = _Places(self.grid, self.order, self.knots.dtype, grid_eps, margin)
        with torch.device("cpu"):
            new, coefficients = self._moved(samples, places)
        self.spline_weight.copy_(coefficients)
        self.knots = new.to(self.knots.device)

    def _moved(self, samples: Tensor, places: "_Places") -> tuple[Tensor, Tensor]:
        """New knots (in_features, k) and the coefficients for them, like `spline_weight`."""
        old = self.knots.cpu().double().expand(self.in_features, -1)
        pairs = zip(old, samples.T, strict=True)
        new = torch.stack([places.moved(*pair) for pair in pairs]).to(self.knots.dtype)
        if not new.isfinite().all():
            raise ValueError(f"x is so large that {new.dtype} cannot hold knots around it")
        # fitted to the knots as they are rounded to the layer's dtype
        triples = zip(old, new.double(), samples.T, strict=True)
        changes = torch.stack([_change_of_basis(*triple, self.order) for triple in triples])
        coefficients = self.spline_weight.cpu().double()  # (out, in, grid + order)
        return new, torch.einsum("ikl,oil->oik", changes, coefficients)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, grid={self.grid}, order={self.order}"


@dataclass(frozen=True)
class _Places:
    """Where the knots of one input go; arguments as in `SplineKAN.update_grid`."""

    grid: int
    order: int
    dtype: torch.dtype
    grid_eps: float
    margin: float

    def moved(self, knots: Tensor, samples: Tensor) -> Tensor:
        """New knots (k,), from the old ones and the samples (n,), in float64."""
        samples = samples.sort().values
        lo, hi = samples[0], samples[-1]
        # nearer to each other, knots might be one number in the layer's dtype
        kind = torch.finfo(self.dtype)
        closest = 8 * kind.eps * torch.maximum(lo.abs(), hi.abs()).clamp_min(kind.tiny)
        if hi - lo <= self.grid * closest:
            return self.around(knots, (lo + hi) / 2, closest)
        rest = torch.maximum(self.margin * (hi - lo), closest)
        lo, hi = lo - rest, hi + rest
        step = (hi - lo) / self.grid
        shares = torch.linspace(0, 1, self.grid + 1, dtype=torch.float64)
        quantiles = _quantiles(samples, shares)
        quantiles[0], quantiles[-1] = lo, hi
        even = (closest / step).clamp_min(self.grid_eps)
        inner = torch.lerp(quantiles, torch.lerp(lo, hi, shares), even)
        beyond = step * torch.arange(1, self.order + 1)
        return torch.cat([lo - beyond.flip(0), inner, hi + beyond])

    def around(self, knots: Tensor, value: Tensor, closest: Tensor) -> Tensor:
        """The old knots if they reach the value; else as wide a grid around it, evenly spaced."""
        lo, hi = knots[self.order], knots[-1 - self.order]
        if lo + closest <= value <= hi - closest:
            return knots
        step = torch.maximum((hi - lo) / self.grid, closest)
        places = torch.arange(len(knots), dtype=torch.float64) - (len(knots) - 1) / 2
        return value + step * places


def _quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """Quantiles of sorted values, however many; torch.quantile takes 16 million at most."""
    places = shares * (len(values) - 1)
    return torch.lerp(values[places.floor().long()], values[places.ceil().long()], places.frac())


def _change_of_basis(old: Tensor, new: Tensor, samples: Tensor, order: int) -> Tensor:
    """The matrix that makes coefficients on new knots (k,) of those on old ones.

    It minimises the mean square difference of every spline on the samples (n,), and with a small
    weight that at 2 (order + 1) points in each new interval. These determine all coefficients,
    whatever the samples are.
    """
    ends = new[order : len(new) - order]
    places = (torch.arange(2 * (order + 1), dtype=torch.float64) + 0.5) / (2 * (order + 1))
    between = (ends[:-1, None] + ends.diff()[:, None] * places).flatten()
    x = torch.cat([samples, between])
    weight = torch.full_like(x, 1 / math.sqrt(len(samples)))
    weight[len(samples) :] = ELSEWHERE / math.sqrt(len(between))
    weight = weight[:, None]
    system = weight * bspline_basis(x, new, order)
    right = weight * bspline_basis(x, old, order)
    return torch.linalg.lstsq(system, right, driver="gelsd").solution


def _take_shape_of_knots(layer: SplineKAN, state_dict: dict, prefix: str, *_: object) -> None:
    """Before a state dict is loaded: knots may be shared, (k,), or of each input."""
    given = state_dict.get(f"{prefix}knots")
    k = layer.knots.shape[-1]
    if isinstance(given, Tensor) and given.shape in ((k,), (layer.in_features, k)):
        layer.knots = layer.knots.new_empty(given.shape)
