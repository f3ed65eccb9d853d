"""Other things that stand in the MLP's place: what a KAT is compared with.

They are chosen for being the strongest of their kind at the same cost: a gated MLP, a square, and
an activation that learns. All start variance-preserving, by the rule of `katlib.init`.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from katlib.init import gain, reset_by, undrawn_linear, variance_preserving_


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


class SquaredReLU(nn.Module):
    """`squared_relu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)


class ChannelPReLU(nn.Module):
    """x above 0 and w x below, with a learned w for each channel (He et al., arXiv 1502.01852).

    `torch.nn.PReLU` takes dimension 1 for the channels, which in (B, N, C) is the tokens.

    Args:
        channels: size of the last dimension.
        start: each w at the start.
    """

    def __init__(self, channels: int, start: float = 0.25):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts every slope back to its start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.weight.to(x.dtype) * x)


class SwiGLU(nn.Module):
    """A gated MLP, fc2(silu(fc1_g(x)) * fc1_x(x)) (Shazeer, arXiv 2002.05202).

    Parameter names are those of timm's `SwiGLU`. It has three matrices where an MLP has two, so at
    equal cost the hidden width is two thirds.
    """

    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0):
        super().__init__()
        self.fc1_g = undrawn_linear(in_features, hidden_features)
        self.fc1_x = undrawn_linear(in_features, hidden_features)
        self.act = nn.SiLU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = undrawn_linear(hidden_features, in_features)
        # the two factors are independent at the start, and E[x^2] = 1
        for layer, before in ((self.fc1_g, 1.0), (self.fc1_x, 1.0), (self.fc2, gain("swish"))):
            reset_by(layer, partial(variance_preserving_, layer, before))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the three linear maps anew."""
        for layer in (self.fc1_g, self.fc1_x, self.fc2):
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.fc1_g(x)) * self.fc1_x(x)  # (B, N, hidden)
        return self.fc2(self.drop1(hidden))  # (B, N, C)
