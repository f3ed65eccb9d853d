"""Formulas read off functions: the fewest terms and digits within a tolerance."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import katlib
from katlib.fit import ERROR_POINTS

GRID = torch.linspace(-3, 3, ERROR_POINTS, dtype=torch.float64)


def evaluated(text, x=GRID):
    """The value of a formula's text at x, by Python alone."""
    return eval(text, {"x": x, "abs": abs, "__builtins__": {}})


def terms(found):
    return sum(int((c != 0).sum()) for c in (found.numerator, found.denominator))


@pytest.mark.parametrize(
    "function, text, degrees",
    [
        (lambda x: x, "x", (1, 0)),
        (lambda x: -x, "-x", (1, 0)),
        (lambda x: x**2, "x**2", (2, 0)),
        (lambda x: 1 - 0.5 * x**3, "1 - 0.5*x**3", (3, 0)),
        (lambda x: x / (1 + x.abs()), "x/(1 + abs(x))", (1, 1)),
        (lambda x: (1 - x) / (1 + 2 * x.abs() ** 3), "(1 - x)/(1 + 2*abs(x)**3)", (1, 3)),
        (lambda x: torch.full_like(x, 0.7), "0.7", (0, 0)),
        (torch.zeros_like, "0", (0, 0)),
    ],
)
def test_a_rational_function_is_recognised(function, text, degrees):
    found = katlib.formula(function)
    assert found.text == repr(found) == text
    assert found.degrees == degrees
    assert found.error < 1e-12


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize(
    "function", ["gelu", "swish", "tanh", torch.sin, nn.Mish(), lambda x: torch.exp(-(x**2))]
)
def test_the_text_is_as_near_to_the_function_as_the_error_says(function, tolerance):
    try:
        found = katlib.formula(function, tolerance)
    except ValueError:
        # ten coefficients do not reach that, as the fit says too
        assert katlib.fit_rational(function).max_error > tolerance
        return
    target = katlib.fit.TARGETS[function] if isinstance(function, str) else function
    error = (evaluated(found.text) - target(GRID)).abs().max().item()
    assert error == pytest.approx(found.error, rel=1e-6, abs=1e-12)
    assert found.error <= tolerance


@pytest.mark.parametrize("function", ["gelu", "swish", "tanh"])
def test_a_formula_has_no_more_terms_than_the_best_fit_of_low_degrees(function):
    for degrees in ((3, 0), (3, 2), (4, 2)):
        fit = katlib.fit_rational(function, degrees)
        assert terms(katlib.formula(function, 1.02 * fit.max_error)) <= sum(degrees) + 1


def test_a_smaller_tolerance_asks_for_as_many_terms_or_more():
    counts = [terms(katlib.formula("tanh", tolerance)) for tolerance in (0.5, 0.1, 1e-2, 1e-4)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("width", [1e-3, 1.0, 1e3])
def test_the_size_of_interval_and_values_does_not_matter(scale, width):
    found = katlib.formula(
        lambda x: scale * torch.tanh(x / width), 0.01 * scale, (-3 * width, 3 * width)
    )
    assert terms(found) == 3
    x = torch.linspace(-3 * width, 3 * width, 101, dtype=torch.float64)
    error = evaluated(found.text, x) - scale * torch.tanh(x / width)
    assert error.abs().max() <= 0.01 * scale


def test_an_interval_on_one_side_is_searched_there_alone():
    assert katlib.formula(torch.abs, interval=(0.5, 2)).text == "x"
    assert katlib.formula(torch.abs, interval=(-2, -0.5)).text == "-x"


def test_the_text_is_good_for_numbers_and_arrays():
    text = katlib.formula("gelu").text
    values = [evaluated(text, x) for x in (1.5, np.array([1.5]), torch.tensor([1.5]))]
    assert [np.asarray(v).item() for v in values] == pytest.approx(3 * [values[0]], rel=1e-6)


@pytest.mark.parametrize(
    "pair, latex",
    [
        (([0.0, 1.0], [1.0]), r"\frac{x}{1 + \lvert x \rvert}"),
        (([0.5, 0.0, -1.0], [0.0, 2.0]), r"\frac{0.5 - x^{2}}{1 + 2\,x^{2}}"),
        (([0.0, 1e-5], []), r"1 \cdot 10^{-5}\,x"),
        (([0.0, 1.0], [0, 0, 0.25]), r"\frac{x}{1 + 0.25\,\lvert x \rvert^{3}}"),
    ],
)
def test_a_formula_is_written_in_latex(pair, latex):
    found = katlib.formula(pair, tolerance=1e-9)
    assert found.latex == latex
    assert found._repr_latex_() == f"${latex}$"


def test_a_fit_that_nothing_simpler_replaces_is_written_as_it_is():
    fit = katlib.fit_rational("gelu", (7, 6))
    found = katlib.formula(fit, tolerance=0)
    assert torch.equal(found.numerator, fit.numerator)
    torch.testing.assert_close(evaluated(found.text), fit(GRID), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "groups, numerator_groups, group, rows",
    [(4, 1, 2, (0, 2)), (2, 4, 3, (3, 1)), (2, 3, 5, (2, 1))],
)
def test_a_group_of_an_activation_is_read(groups, numerator_groups, group, rows):
    activation = katlib.GroupRational(12, groups, numerator_groups=numerator_groups)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in activation.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    found = katlib.formula(activation, 0.05, group=group)
    pair = activation.weight_numerator[rows[0]], activation.weight_denominator[rows[1]]
    assert found.text == katlib.formula(pair, 0.05).text
    channel = group * 12 // math.lcm(groups, numerator_groups)
    values = activation(GRID.float()[:, None].expand(-1, 12))[:, channel]
    assert (evaluated(found.text) - values).abs().max() < 0.0501


def test_an_activation_can_start_from_a_formula():
    found = katlib.formula("tanh")
    activation = katlib.GroupRational(8, init=found, degrees=found.degrees)
    # the plain way, which needs no kernel for these degrees
    weights = activation.weight_numerator, activation.weight_denominator
    values = katlib.rational_reference(GRID.float()[:, None].expand(-1, 8), *weights)
    torch.testing.assert_close(values[:, 0], evaluated(found.text).float())


def test_the_edge_of_a_kan_can_be_read():
    layer = katlib.SplineKAN(1, 1)
    x = torch.linspace(-1, 0.99, 200)[:, None]
    basis = katlib.spline.bspline_basis(x[:, 0], layer.knots, 3)
    with torch.no_grad():
        layer.base_weight.zero_()
        layer.spline_weight.copy_(torch.linalg.lstsq(basis, 2 * x**2 - 1).solution[:, 0])
    found = katlib.formula(lambda t: layer(t.float()[:, None])[:, 0], 1e-3, (-1, 0.99))
    assert found.text == "-1 + 2*x**2"


def test_the_default_dtype_and_the_threads_do_not_matter():
    expected = katlib.formula("gelu").text
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float16)
    try:
        assert katlib.formula(F.gelu).text == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: katlib.formula("gelu", interval=(1, 1)), "lo < hi"),
        (lambda: katlib.formula("gelu", tolerance=-1), "tolerance >= 0"),
        (lambda: katlib.formula("gelu", degrees=(9, 9)), "at most 14"),
        (lambda: katlib.formula("gelu", degrees=(-1, 2)), "degrees >= 0"),
        (lambda: katlib.formula("gelu", 1e-9), r"within 1e-09 .* the nearest is 0.0013"),
        (lambda: katlib.formula("sine"), "'sine' is not known"),
        (lambda: katlib.formula(torch.log), "not finite"),
        (lambda: katlib.formula(torch.sum), "shape"),
        (lambda: katlib.formula(katlib.GroupRational(8, 4), group=4), "allowed are 0 to 3"),
    ],
)
def test_what_cannot_be_read_says_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
