"""Trains the small networks of the chapters on KANs, on all points at once.

    net = learn(net, x, y)
    relative_error(net(new_x), new_y)

Adam would need thousands of steps here. LBFGS, a quasi-Newton method, suits networks of a few
hundred parameters and targets without noise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def uniform_points(n: int, d: int, seed: int) -> Tensor:
    """Random points in the cube [-1, 1]^d.

    Args:
        n: how many points.
        d: how many coordinates each has.
        seed: the same seed gives the same points.

    Returns:
        (n, d), float32.

    Example:
        >>> uniform_points(1000, 2, seed=0).shape
        torch.Size([1000, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator) * 2 - 1


def learn(net: nn.Module, x: Tensor, y: Tensor, iterations: int = 200) -> nn.Module:
    """Trains a network in place, to the least mean square error.

    Args:
        net: what to train; any module with parameters.
        x: inputs, (n, d_in).
        y: targets, (n, d_out).
        iterations: of LBFGS, at most; it ends early where the loss does not change any more.

    Returns:
        The same network, for short notation.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> relative_error(learn(nn.Linear(1, 1), x, 3 * x)(x), 3 * x) < 1e-3
        True
    """
    lbfgs = torch.optim.LBFGS(
        net.parameters(),
        max_iter=iterations,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def loss() -> Tensor:
        lbfgs.zero_grad()
        value = F.mse_loss(net(x), y)
        value.backward()
        return value

    lbfgs.step(loss)
    return net


def relative_error(prediction: Tensor, y: Tensor) -> float:
    """The root mean square error, as a share of the targets' standard deviation.

    Args:
        prediction: what a network says, of the shape of y.
        y: the targets.

    Returns:
        0 for a perfect prediction, and 1 for the best constant.

    Example:
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> relative_error(torch.full_like(y, 2.0), y)
        1.0
    """
    with torch.no_grad():
        return ((prediction - y).square().mean().sqrt() / y.std(correction=0)).item()
