"""The group-rational function, the activation of the Kolmogorov-Arnold Transformer.

    F(x) = P(x) / Q(x)
    P(x) = a_0 + a_1 x + ... + a_m x^m
    Q(x) = 1 + |b_1| |x| + ... + |b_n| |x|^n

Channels come in groups of neighbours, and a group shares one F (Yang & Wang, arXiv 2409.10594,
equations 11 to 13). Q is the "safe" denominator in which every term has its own absolute value
(Molina et al., arXiv 1907.06732; "version A" in their code). It is at least 1 everywhere, so F has
no pole, and the published KAT checkpoints were trained with it.

Letters as in the papers: a and b are the coefficients, P and Q the polynomials, F the ratio.
"""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from katlib import ops

# coefficients as plain numbers, a row for each group
Coefficients = tuple[tuple[float, ...], ...]

# GELU of the KAT release (arXiv 2409.10594). It was fitted with another denominator than the one
# that is evaluated, so it is 1.46 off at x = 3 (chapter 5).
RELEASED_GELU = (
    (-0.00153968995, 0.516928732, 0.440758258, 0.097255297, -0.00884418003, -0.0037867499),
    (-0.141710564, -0.06481231, -0.0444695018, 0.0128377602),
)

# Fitted starting coefficients by name and by degrees "m,n"; `make coefficients` writes the file.
STORED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "coefficients.json").read_text(encoding="utf-8")
)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, *, dim: int = -1) -> Tensor:
    """Applies F(x) = P(x) / Q(x), with one F for each group of channels.

    Args:
        x: any shape of rank 1 or more; float16, bfloat16, float32 or float64. C is its size along
            `dim`.
        numerator: (Gn, m + 1), the coefficients a_0 .. a_m of each numerator group in ascending
            order; one of the same types.
        denominator: (Gd, n), the coefficients b_1 .. b_n of each denominator group; only their
            absolute values count.
        dim: the channel dimension; -1 for (batch, tokens, channels), 1 for (N, C, H, W).

    Gn and Gd are any divisors of C. A group is a block of neighbouring channels
    (arXiv 2409.10594, equations 11 to 13).

    Value and gradients are right for |x| up to 10^6, and for every finite float16, with degrees up
    to 8 and coefficients up to 100. bfloat16 and float32 have a wider range. With degrees up to 5,
    polynomials of much larger x overflow in float32, and the result may be infinite, NaN or 0. With
    higher degrees, huge x are computed in float64 (on Apple's GPUs, which lack it, in float32).

    Returns:
        A tensor of x's shape, dtype and memory format. Half types are computed in float32, float64
        in float64. The gradient of |t| at t = 0 is taken as +1, so that a denominator that starts
        at 0 still learns. Gradients of any order are defined, in reverse mode; forward-mode
        differentiation (`torch.func.jvp`) raises NotImplementedError.

    Raises:
        TypeError: an argument is not a tensor of one of these types.
        ValueError: shapes, devices, groups or `dim` do not fit; the message says what was given and
            what is allowed.

    Example:
        >>> x = torch.tensor([-2.0, 0.0, 2.0])
        >>> katlib.rational(x, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))  # softsign
        tensor([-0.6667,  0.0000,  0.6667])
    """
    _check(x, numerator, denominator, dim)
    return ops.rational(x, numerator, denominator, dim)


def rational_reference(
    x: Tensor, numerator: Tensor, denominator: Tensor, *, dim: int = -1
) -> Tensor:
    """`rational` in plain PyTorch, for any device and dtype, differentiable by autograd.

    It is what every faster way of computing F is compared with. Arguments, result and errors are
    those of `rational`. The result is contiguous.

    Example:
        >>> x = torch.tensor([-2.0, 0.0, 2.0])
        >>> katlib.rational_reference(x, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))
        tensor([-0.6667,  0.0000,  0.6667])
    """
    _check(x, numerator, denominator, dim)
    return ops.reference_forward(x, numerator, denominator, dim)


def initial_coefficients(
    init: Any, degrees: tuple[int, int] | None = (5, 4)
) -> tuple[Tensor, Tensor]:
    """Coefficients to start from: a_0 .. a_m and b_1 .. b_n as two float64 vectors.

    Args:
        init: a name, "identity", "relu", "gelu", "swish" or "tanh", whose coefficients `katlib.fit`
            has fitted, or "released-gelu", those of the KAT release, which are not GELU; or a
            `katlib.RationalFit` or `RationalExplorer`; or a pair (numerator, denominator) of
            one-dimensional tensors or lists.
        degrees: (m, n). With None, a fit or a pair keeps the degrees that it has; a name needs
            degrees.

    Raises:
        ValueError: an unknown name, degrees for which that name was not fitted, or coefficients of
            another number.
    """
    a, b = _start(init, degrees)
    # on the CPU whatever the default device is: whoever asks wants to read the numbers
    return (
        torch.tensor(a, dtype=torch.float64, device="cpu"),
        torch.tensor(b, dtype=torch.float64, device="cpu"),
    )


def _start(init: Any, degrees: tuple[int, int] | None) -> tuple[list[float], list[float]]:
    """`initial_coefficients` as plain numbers, which are there in a `FakeTensorMode` too."""
    if isinstance(init, str):
        if degrees is None:
            raise ValueError(f"init={init!r} has no degrees of its own; give degrees=(m, n)")
        a, b = _named_coefficients(init, _checked_degrees(degrees))
    else:
        a, b = (init.numerator, init.denominator) if hasattr(init, "numerator") else init
    a, b = _numbers(a), _numbers(b)
    m, n = (len(a) - 1, len(b)) if degrees is None else _checked_degrees(degrees)
    if (len(a), len(b)) != (m + 1, n):
        raise ValueError(
            f"init has {len(a)} numerator and {len(b)} denominator coefficients; "
            f"degrees={degrees} needs {m + 1} and {n}"
        )
    return a, b


def _numbers(values: Any) -> list[float]:
    """A tensor's, an array's or a list's numbers, in one row."""
    # tolist before any conversion: Apple's GPUs have no float64, and for a tensor from outside of a
    # FakeTensorMode it works within one, as no other operation does
    array = np.asarray(values.tolist() if isinstance(values, Tensor) else values)
    # an empty list is float64; None, texts and ragged lists have other kinds
    if array.dtype.kind not in "fiu":
        raise TypeError(f"init holds {values!r:.100}; allowed are numbers")
    return array.astype(np.float64).ravel().tolist()


def _checked_degrees(degrees: tuple[int, int]) -> tuple[int, int]:
    m, n = degrees
    if m < 0 or n < 0:
        raise ValueError(f"degrees={degrees}; allowed are pairs (m, n) of m >= 0 and n >= 0")
    return m, n


def _named_coefficients(name: str, degrees: tuple[int, int]) -> tuple[Any, Any]:
    """The numerator and denominator that were stored under a name."""
    m, n = degrees
    if name == "identity":
        if m < 1:
            raise ValueError(f"init='identity' needs m >= 1; degrees={degrees}")
        # exact at any degrees
        return [0.0, 1.0] + [0.0] * (m - 1), [0.0] * n
    if name == "released-gelu":
        return RELEASED_GELU
    if name not in STORED:
        names = ", ".join(map(repr, STORED))
        raise ValueError(
            f"init={name!r} is not known; allowed are 'identity', {names}, 'released-gelu'"
        )
    fits = STORED[name]
    if f"{m},{n}" not in fits:
        raise ValueError(
            f"init={name!r} is fitted for degrees {', '.join(f'({d})' for d in fits)}, not for "
            f"{degrees}; for others pass init=katlib.fit_rational(target, degrees={degrees})"
        )
    fit = fits[f"{m},{n}"]
    return fit["numerator"], fit["denominator"]


class GroupRational(nn.Module):
    """A learned activation: one rational function for each group of channels.

    Args:
        channels: size of the channel dimension.
        groups: number of denominators; a divisor of `channels`, or None for one for each channel.
        init: where to start, see `initial_coefficients`.
        degrees: (m, n), the degrees of numerator and denominator.
        numerator_groups: number of numerators, likewise; 1 shares one among all groups, as the
            released KAT models do.
        dim: the channel dimension of the input.
        device, dtype: where and as what the parameters are made; default: PyTorch's default device
            and dtype, as for `torch.nn.Linear`.

    Parameters (names as in the released checkpoints):
        weight_numerator: (numerator_groups, m + 1).
        weight_denominator: (groups, n).

    A half-precision input is computed in float32, and float32 coefficients are right for it: so it
    is under autocast. A layer that is made or cast as a half type has coefficients of that type,
    like any PyTorch module; they are rounded to it, which powers of x magnify.

    Attributes:
        start: the coefficients to start from, a numerator and a denominator for all groups, as
            plain numbers. `reset_parameters` goes back to them.

    Raises:
        ValueError: group counts that do not divide `channels`, or an `init` that is not known.

    Example:
        >>> katlib.GroupRational(64, groups=8, init="gelu")(torch.zeros(2, 64)).shape
        torch.Size([2, 64])
    """

    # modules that were pickled before this attribute came have none of their own
    start: tuple[Coefficients, Coefficients] | None = None

    def __init__(
        self,
        channels: int,
        groups: int | None = 8,
        init: Any = "swish",
        degrees: tuple[int, int] = (5, 4),
        numerator_groups: int | None = 1,
        dim: int = -1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        groups = _checked_groups("groups", groups, channels)
        numerator_groups = _checked_groups("numerator_groups", numerator_groups, channels)
        a, b = _start(init, degrees)
        self.start = ((tuple(a),), (tuple(b),))
        self.channels = channels
        self.dim = dim
        numerator = torch.empty(numerator_groups, len(a), device=device, dtype=dtype)
        denominator = torch.empty(groups, len(b), device=device, dtype=dtype)
        self.weight_numerator = nn.Parameter(numerator)
        self.weight_denominator = nn.Parameter(denominator)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every group's coefficients to where they started, whatever they are now.

        Raises:
            RuntimeError: the layer comes from a pickle of a version that did not keep its start.
        """
        if self.start is None:
            raise RuntimeError(
                "this GroupRational does not know where it started: it was pickled by an older "
                "version of katlib; build it anew and load its state dict"
            )
        a, b = self.start
        assign_(self.weight_numerator, torch.tensor(a, dtype=torch.float64, device="cpu"))
        assign_(self.weight_denominator, torch.tensor(b, dtype=torch.float64, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        has_dim = -x.ndim <= self.dim < x.ndim
        if not has_dim or x.shape[self.dim] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; dimension {self.dim} must have "
                f"{self.channels} channels"
            )
        return rational(x, self.weight_numerator, self.weight_denominator, dim=self.dim)

    def extra_repr(self) -> str:
        numerator_groups, m = self.weight_numerator.shape
        groups, n = self.weight_denominator.shape
        return (
            f"{self.channels}, groups={groups}, degrees=({m - 1}, {n}), "
            f"numerator_groups={numerator_groups}, dim={self.dim}"
        )


@torch.no_grad()
def assign_(parameter: Tensor, values: Tensor) -> None:
    """Copies values that broadcast to the parameter's shape into it, whole or sharded.

    Every process passes the values of the whole tensor; of a DTensor each keeps its part of those
    of the first process.
    """
    values = values.to(parameter.dtype).to(parameter.device).expand(parameter.shape)
    if is_distributed(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor

        sharded = cast(DTensor, parameter)
        mesh, placements = sharded.device_mesh, sharded.placements
        values = distribute_tensor(values.contiguous(), mesh, placements)
    parameter.copy_(values)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, or all of a DTensor, whose parts the processes then exchange."""
    if not is_distributed(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    return cast(DTensor, tensor).full_tensor()


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor; its module, which takes a second to import, is not imported."""
    return hasattr(tensor, "device_mesh")


def _checked_groups(name: str, count: int | None, channels: int) -> int:
    """The number of groups; None stands for one for each channel."""
    if count is None:
        return channels
    if count < 1 or channels % count:
        raise ValueError(
            f"{name}={count} does not divide channels={channels}; use a divisor of {channels}"
        )
    return count


def _check(x: Tensor, numerator: Tensor, denominator: Tensor, dim: int) -> None:
    """Raises a TypeError or ValueError that says what does not fit."""
    _check_tensor("x", x, x)
    _check_tensor("numerator", numerator, x)
    _check_tensor("denominator", denominator, x)
    if x.ndim == 0:
        raise ValueError("x has no dimensions; it needs at least the channel dimension")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"dim={dim} is out of range for x of shape {tuple(x.shape)}; allowed are {-x.ndim} "
            f"to {x.ndim - 1}"
        )
    if numerator.ndim != 2 or numerator.shape[1] == 0:
        raise ValueError(
            f"numerator has shape {tuple(numerator.shape)}; it must be (groups, m + 1), m >= 0"
        )
    if denominator.ndim != 2:
        raise ValueError(
            f"denominator has shape {tuple(denominator.shape)}; it must be (groups, n)"
        )
    _check_groups("numerator", numerator, x, dim)
    _check_groups("denominator", denominator, x, dim)


def _check_tensor(name: str, tensor: Tensor, x: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if tensor.dtype not in ops.DTYPES:
        raise TypeError(
            f"{name} is {tensor.dtype}; allowed are float16, bfloat16, float32 and float64"
        )
    if tensor.device != x.device:
        raise ValueError(
            f"{name} is on {tensor.device} and x on {x.device}; they must be on one device"
        )


def _check_groups(name: str, coefficients: Tensor, x: Tensor, dim: int) -> None:
    groups, channels = coefficients.shape[0], x.shape[dim]
    if groups == 0 or channels % groups:
        raise ValueError(
            f"{name} has {groups} groups, which do not divide the {channels} channels of x (shape "
            f"{tuple(x.shape)}, dim={dim}); use a divisor of {channels}"
        )
