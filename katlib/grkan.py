"""Group-rational KAN layers: KAT's replacement for the linear layer and for a transformer's MLP.

    GRKAN:     y = W F(x) + c                         (arXiv 2409.10594, equation 14)
    GRKANMlp:  y = W_2 F_2(W_1 F_1(x) + c_1) + c_2

F is a `GroupRational`: one rational function for each group of channels. At the start F_1 is the
identity and F_2 swish. A KAN layer has one function on each of its in_features * out_features
edges. Sharing the functions in groups, and leaving each edge only a weight, makes it as cheap as an
MLP.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from katlib.init import gain_at_start, reset_by, undrawn_linear, variance_preserving_
from katlib.rational import GroupRational


def as_linear_input(x: Tensor) -> Tensor:
    """x as bfloat16 if autocast is going to cast the linear layer's input to it, else x as it is.

    A norm's output is float32 under autocast. Casting it before the rational function and not after
    halves the bytes that the function reads, writes and keeps for backward. Under autocast to
    float16 x is left alone: an input above 65,504 would become infinite, and the function may well
    map it to a small number.
    """
    device = x.device.type
    # there is no autocast on the meta device
    if x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(device):
        return x
    return x.bfloat16() if torch.get_autocast_dtype(device) == torch.bfloat16 else x


class GRKAN(nn.Module):
    """A group-rational KAN layer: a group-rational function, then a linear map.

    Args:
        in_features, out_features: sizes of the last dimension before and after.
        groups: groups of the rational function; a divisor of `in_features`, or None for one for
            each feature.
        init: its starting point, see `katlib.rational.initial_coefficients`.
        bias: whether the linear map has a bias.
        degrees, numerator_groups: of the rational function, see `GroupRational`.
        device, dtype: where and as what the parameters are made, see `GroupRational`.

    Input (..., in_features), output (..., out_features), of the input's dtype or of autocast's. The
    weights start variance-preserving (`katlib.init`): an input of N(0, 1) leaves with variance 1.

    Raises:
        ValueError: groups that do not divide `in_features`, or an unknown `init`.

    Example:
        >>> katlib.GRKAN(64, 128)(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 128])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int | None = 8,
        init: Any = "swish",
        bias: bool = True,
        degrees: tuple[int, int] = (5, 4),
        numerator_groups: int | None = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.act = GroupRational(in_features, groups, init, degrees, numerator_groups, **new)
        self.fc = _linear_after(self.act, in_features, out_features, bias, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts anew: the rational function where it began, the linear map drawn for it."""
        self.act.reset_parameters()
        variance_preserving_(self.fc, gain_at_start(self.act))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(as_linear_input(x)))  # (..., in) -> (..., out)


class GRKANMlp(nn.Module):
    """Two GR-KAN layers in the place of a transformer's MLP; it fits timm's `mlp_layer` slot.

    Args:
        in_features: size of the last dimension.
        hidden_features, out_features: default to `in_features`.
        act_layer, norm_layer: accepted because timm's blocks pass them. `act_layer` is not used,
            because the activation is learned; `norm_layer` must be None.
        device, dtype: where and as what the parameters are made, see `GroupRational`.
        bias: whether the linear maps have biases, or a pair, one for each.
        drop: dropout probability after each activation, or a pair, one for each.
        groups, degrees, numerator_groups: of both rational functions, see `GroupRational`.
        init: where the two functions start.

    Input (..., in_features), output (..., out_features). Parameter names are those of the released
    checkpoints: act1, fc1, act2, fc2.

    Raises:
        ValueError: groups that do not divide `in_features` and `hidden_features`, an unknown
            `init`, or a `norm_layer`.

    Example:
        >>> katlib.GRKANMlp(64, 256)(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Any = None,
        norm_layer: Any = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        groups: int | None = 8,
        init: tuple[Any, Any] = ("identity", "swish"),
        degrees: tuple[int, int] = (5, 4),
        numerator_groups: int | None = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if norm_layer is not None:
            raise ValueError(
                f"norm_layer={norm_layer!r}: GRKANMlp has no norm between its layers; only None "
                "is allowed"
            )
        hidden_features = hidden_features or in_features
        out_features = out_features or in_features
        bias1, bias2 = _pair("bias", bias)
        drop1, drop2 = _pair("drop", drop)
        new = {"device": device, "dtype": dtype}
        shape = (degrees, numerator_groups)
        self.act1 = GroupRational(in_features, groups, init[0], *shape, **new)
        self.drop1 = nn.Dropout(drop1)
        self.fc1 = _linear_after(self.act1, in_features, hidden_features, bias1, **new)
        self.act2 = GroupRational(hidden_features, groups, init[1], *shape, **new)
        self.drop2 = nn.Dropout(drop2)
        self.fc2 = _linear_after(self.act2, hidden_features, out_features, bias2, **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts anew: the functions where they began, each linear map drawn for the one before."""
        for act, fc in ((self.act1, self.fc1), (self.act2, self.fc2)):
            act.reset_parameters()
            variance_preserving_(fc, gain_at_start(act))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.drop1(self.act1(as_linear_input(x))))  # (..., in) -> (..., hidden)
        return self.fc2(self.drop2(self.act2(x)))  # (..., hidden) -> (..., out)


def _linear_after(
    act: GroupRational, in_features: int, out_features: int, bias: bool, **new: Any
) -> nn.Linear:
    """The linear map after `act`, not drawn yet; reset by itself, it is drawn for `act`."""
    fc = undrawn_linear(in_features, out_features, bias, **new)
    reset_by(fc, partial(variance_preserving_, fc, gain_at_start(act)))
    return fc


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    """One for each of the two layers: timm passes either a pair or one for both."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}={value!r}; allowed are one value or a pair")
    return pair


class GRKANIntermediate(nn.Module):
    """F_2(W_1 F_1(x) + c_1), in the place of the first half of a Hugging Face MLP.

    There `intermediate` ends with the activation, and `output` begins with W_2. The linear map
    keeps its name, `dense`.

    Args:
        act1, act2: the two functions, F_1 and F_2.
        dense: the linear map W_1, c_1.

    Input (..., in_features), output (..., hidden_features).

    Example:
        >>> functions = katlib.GroupRational(8, init="identity"), katlib.GroupRational(16)
        >>> layer = katlib.convert.GRKANIntermediate(
        ...     functions[0], torch.nn.Linear(8, 16), functions[1]
        ... )
        >>> layer(torch.zeros(2, 8)).shape
        torch.Size([2, 16])
    """

    def __init__(self, act1: nn.Module, dense: nn.Module, act2: nn.Module):
        super().__init__()
        self.act1 = act1
        self.dense = dense
        self.act2 = act2

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.dense(self.act1(x)))  # (..., in) -> (..., hidden)
