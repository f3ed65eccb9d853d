"""B-spline KAN layers: the basis, and the sum over edges."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.spline import bspline_basis

KNOTS = torch.arange(-3, 9, dtype=torch.float64)


@pytest.fixture
def basis():
    return bspline_basis(torch.linspace(0, 4.999, 200, dtype=torch.float64), KNOTS, 3)


def test_the_basis_sums_to_one(basis):
    assert basis.shape == (200, 8)
    assert_close(basis.sum(-1), torch.ones(200, dtype=torch.float64))


def test_the_basis_functions_are_local_bumps(basis):
    assert (basis >= 0).all()
    assert ((basis > 0).sum(-1) <= 4).all()


def test_the_cubic_basis_at_a_knot_is_one_four_one_sixths():
    values = bspline_basis(torch.tensor([2.0], dtype=torch.float64), KNOTS, 3)[0, 2:5]
    assert_close(values, torch.tensor([1, 4, 1], dtype=torch.float64) / 6)


def test_splines_reproduce_a_cubic():
    """Cubic splines contain all cubics: least squares on the basis leaves nothing over."""
    x = torch.linspace(-0.999, 0.999, 100, dtype=torch.float64)
    basis = bspline_basis(x, katlib.SplineKAN(1, 1).double().knots, 3)
    y = 1 - x + 2 * x**3
    left_over = y - basis @ torch.linalg.lstsq(basis, y[:, None]).solution[:, 0]
    assert left_over.abs().max() < 1e-10


def test_a_spline_kan_is_a_sum_over_edges():
    layer = katlib.SplineKAN(3, 2, grid=4, order=2).double()
    x = torch.rand(5, 3, dtype=torch.float64) * 2 - 1

    def edge(i, o):
        spline = bspline_basis(x[:, i], layer.knots, 2) @ layer.spline_weight[o, i]
        return layer.base_weight[o, i] * F.silu(x[:, i]) + spline

    expected = torch.stack([sum(edge(i, o) for i in range(3)) for o in range(2)], 1)
    assert_close(layer(x), expected)


def test_a_spline_kan_tells_its_sizes():
    assert "3, 2, grid=4, order=2" in repr(katlib.SplineKAN(3, 2, grid=4, order=2))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: katlib.SplineKAN(2, 0), "sizes and grid >= 1"),
        (lambda: katlib.SplineKAN(2, 2, interval=(1, 1)), "lo < hi"),
        (lambda: katlib.SplineKAN(2, 2)(torch.zeros(3, 4)), "last dimension must be 2"),
        (lambda: bspline_basis(torch.zeros(1), torch.arange(3.0), 3), "at least order"),
    ],
)
def test_bad_layers_say_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
