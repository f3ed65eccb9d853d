"""Group-rational KAN layers: KAT's replacement for the linear layer and for a transformer's MLP.

    GRKAN:     y = W F(x) + c                         (arXiv 2409.10594, equation 14)
    GRKANMlp:  y = W_2 F_2(W_1 F_1(x) + c_1) + c_2

F is a `GroupRational`: one rational function for each group of channels. At the start F_1 is the
identity and F_2 swish. A KAN layer has one function on each of its in_features * out_features
edges. Sharing the functions in groups, and leaving each edge only a weight, makes it as cheap as an
MLP.
"""

from typing import Any

import torch
from torch import Tensor, nn

from katlib.init import variance_preserving_
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
    ):
        super().__init__()
        self.act = GroupRational(in_features, groups, init, degrees, numerator_groups)
        self.fc = nn.Linear(in_features, out_features, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the linear map anew, with the gain of the rational function as it stands."""
        variance_preserving_(self.fc, self.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(as_linear_input(x)))  # (..., in) -> (..., out)


class GRKANMlp(nn.Module):
    """Two GR-KAN layers in the place of a transformer's MLP; it fits timm's `mlp_layer` slot.

    Args:
        in_features: size of the last dimension.
        hidden_features, out_features: default to `in_features`.
        act_layer, norm_layer: accepted because timm's blocks pass them. `act_layer` is not used,
            because the activation is learned; `norm_layer` must be None.
        device, dtype: where and as what the parameters are made; default: the CPU's float32, as for
            all modules.
        bias: whether the linear maps have biases.
        drop: dropout probability after each activation.
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
        bias: bool = True,
        drop: float = 0.0,
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
        self.act1 = GroupRational(in_features, groups, init[0], degrees, numerator_groups)
        self.drop1 = nn.Dropout(drop)
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias)
        self.act2 = GroupRational(hidden_features, groups, init[1], degrees, numerator_groups)
        self.drop2 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_features, out_features, bias=bias)
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws both linear maps anew, each with the gain of the function before it."""
        variance_preserving_(self.fc1, self.act1)
        variance_preserving_(self.fc2, self.act2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.drop1(self.act1(as_linear_input(x))))  # (..., in) -> (..., hidden)
        return self.fc2(self.drop2(self.act2(x)))  # (..., hidden) -> (..., out)
