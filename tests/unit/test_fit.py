"""Fits under the denominator that is evaluated, and gains by quadrature."""

import math

import pytest
import torch
from torch.nn import functional as F

import katlib
from katlib.fit import TARGETS, max_error
from katlib.rational import STORED, initial_coefficients


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("degrees", ["3,2", "5,4", "7,6"])
def test_stored_errors_are_those_of_the_stored_coefficients(name, degrees):
    """Evaluated anew, term by term, on even points of [-3, 3]."""
    entry = STORED[name][degrees]
    x = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    P = sum(a * x**i for i, a in enumerate(entry["numerator"]))
    Q = 1 + sum(abs(b) * x.abs() ** (j + 1) for j, b in enumerate(entry["denominator"]))
    assert (P / Q - TARGETS[name](x)).abs().max().item() == pytest.approx(
        entry["max_error"], rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize(
    "name, bound",
    [("gelu", 5e-3), ("swish", 5e-3), ("swish", 1e-6), ("tanh", 2e-6), ("relu", 0.02)],
)
def test_fits_are_close(name, bound):
    assert STORED[name]["5,4"]["max_error"] < bound
    assert katlib.fit_rational(name, rounds=10).max_error < 2 * bound


def test_a_fit_is_no_worse_than_what_is_known():
    """The best polynomial of degree 1 for |x| ... x^2 on [-1, 1] is the constant 1/2; a rational (2, 2) is exact for x^2."""
    assert katlib.fit_rational(lambda x: x**2, (1, 0), (-1, 1)).max_error == pytest.approx(
        0.5, rel=0.02
    )
    assert katlib.fit_rational(lambda x: x**2, (2, 2), (-1, 1)).max_error < 1e-9
    assert katlib.fit_rational(lambda x: x / (1 + x.abs()), (1, 1)).max_error < 1e-9
    # Newman (1964): rational approximation of |x| beats polynomials; degree 4 polynomials reach about 0.068 (Bernstein)
    assert katlib.fit_rational(torch.abs, (4, 0), (-1, 1)).max_error == pytest.approx(
        0.0676, rel=0.05
    )


def test_a_fit_can_be_called_and_measured():
    fit = katlib.fit_rational(torch.sin, interval=(-2, 1))
    x = torch.linspace(-2, 1, 7, dtype=torch.float64).view(7, 1)
    assert (
        fit(x).shape == (7, 1)
        and fit(x).dtype == torch.float64
        and fit(x.float()).dtype == torch.float32
    )
    assert (fit(x) - torch.sin(x)).abs().max() <= fit.max_error
    assert max_error(fit, torch.sin, (-2, 1)) == fit.max_error
    assert (fit.denominator >= 0).all() and fit.interval == (-2.0, 1.0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("sigmoid_",), "'sigmoid_' is not known; allowed are 'identity'"),
        (("swish", (-1, 4)), "degrees >= 0"),
        (("swish", (5, 4), (3, -3)), "lo < hi"),
        ((torch.log,), "not finite"),
    ],
)
def test_bad_fits(arguments, words):
    with pytest.raises(ValueError, match=words):
        katlib.fit_rational(*arguments)


@pytest.mark.parametrize(
    "name, alpha", [("identity", 1.0), ("relu", 2.0), ("swish", 2.811), ("gelu", 2.352)]
)
def test_gains(name, alpha):
    assert katlib.gain(name) == pytest.approx(alpha, abs=1e-3)


def test_gains_in_closed_form():
    assert katlib.gain(lambda z: z**3) == pytest.approx(1 / 15)  # E[z^6] = 15
    assert katlib.gain(lambda z: 3 * z) == pytest.approx(1 / 9)
    assert katlib.gain(torch.exp) == pytest.approx(math.exp(-2))  # E[exp(2 z)] = e^2
    assert katlib.gain(F.leaky_relu) == pytest.approx(2 / (1 + 0.01**2))


def test_the_gain_of_a_group_rational_is_averaged_over_its_groups():
    layer = katlib.GroupRational(16, groups=2, init="swish")
    assert katlib.gain(layer) == pytest.approx(katlib.gain("swish"), rel=1e-4)
    with torch.no_grad():  # one group is now x, the other x / 2
        layer.weight_numerator.zero_()[:, 1] = 1
        layer.weight_denominator.zero_()
    assert katlib.gain(layer) == pytest.approx(1.0)
    two = katlib.GroupRational(16, groups=1, numerator_groups=2, init="identity")
    with torch.no_grad():
        two.weight_numerator[1, 1] = 3.0  # x and 3 x: E[F^2] = (1 + 9) / 2
    assert katlib.gain(two) == pytest.approx(1 / 5)


def test_an_activation_of_zero_has_no_gain():
    with pytest.raises(ValueError, match="no gain"):
        katlib.gain(torch.zeros_like)


def test_the_released_gelu_was_fitted_under_another_denominator():
    """Why fits and evaluation share one Q here: the released coefficients for GELU, evaluated with the safe denominator."""
    a = [-0.00153968995, 0.516928732, 0.440758258, 0.097255297, -0.00884418003, -0.0037867499]
    b = [-0.141710564, -0.06481231, -0.0444695018, 0.0128377602]
    released = katlib.RationalFit(
        torch.tensor(a, dtype=torch.float64),
        torch.tensor(b, dtype=torch.float64),
        math.nan,
        (-3, 3),
    )
    assert max_error(released, "gelu") == pytest.approx(1.46, abs=0.01)
    ours = katlib.RationalFit(*initial_coefficients("gelu"), math.nan, (-3, 3))
    assert max_error(ours, "gelu") < 5e-3
