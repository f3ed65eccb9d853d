"""How the chapters on KANs train their small networks."""

import doctest

import pytest
import torch
from torch import nn

from katlib.book import lbfgs
from katlib.book.lbfgs import learn, relative_error, uniform_points


def test_the_examples_give_what_they_say():
    assert doctest.testmod(lbfgs).failed == 0


def test_points_fill_the_cube_and_follow_the_seed():
    points = uniform_points(2000, 3, seed=0)
    assert points.aminmax().min == pytest.approx(-1, abs=0.01)
    assert points.aminmax().max == pytest.approx(1, abs=0.01)
    assert torch.equal(points, uniform_points(2000, 3, seed=0))
    assert not torch.equal(points, uniform_points(2000, 3, seed=1))


def test_a_network_finds_a_function_that_it_can_make():
    torch.manual_seed(0)
    x = uniform_points(200, 2, seed=0)
    net = nn.Linear(2, 1)
    y = x[:, :1] - 2 * x[:, 1:] + 0.5
    assert learn(net, x, y) is net
    assert relative_error(net(x), y) < 1e-3


def test_more_iterations_leave_a_smaller_error():
    x = uniform_points(200, 1, seed=0)
    y = torch.sin(3 * x)

    def error_after(iterations: int) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        return relative_error(learn(net, x, y, iterations)(x), y)

    assert error_after(100) < 0.2 * error_after(3)


def test_the_best_constant_has_an_error_of_one():
    y = torch.tensor([[0.0], [1.0], [5.0]])
    assert relative_error(y.mean().expand(3, 1), y) == pytest.approx(1)
    assert relative_error(y, y) == 0
