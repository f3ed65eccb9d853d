"""Fits under the denominator that is evaluated, and gains by quadrature."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import katlib
from katlib import fit
from katlib.fit import TARGETS, max_error, refit
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


@pytest.mark.parametrize(
    "target, degrees, interval",
    [
        (lambda x: x**2, (2, 2), (-1, 1)),
        (lambda x: x / (1 + x.abs()), (1, 1), (-3, 3)),
    ],
    ids=["x^2", "softsign"],
)
def test_a_target_of_the_same_form_is_found_exactly(target, degrees, interval):
    assert katlib.fit_rational(target, degrees, interval).max_error < 1e-9


@pytest.mark.parametrize(
    "target, degrees, best",
    [
        # the best line for x^2 on [-1, 1] is the constant 1/2
        (lambda x: x**2, (1, 0), 0.5),
        # Bernstein: polynomials of degree 4 reach about 0.068; Newman (1964): rationals beat them
        (torch.abs, (4, 0), 0.0676),
    ],
    ids=["x^2", "|x|"],
)
def test_a_polynomial_fit_is_as_good_as_the_best_known(target, degrees, best):
    fitted = katlib.fit_rational(target, degrees, (-1, 1))
    assert fitted.max_error == pytest.approx(best, rel=0.05 if best < 0.1 else 0.02)


@pytest.fixture(scope="module")
def sine():
    return katlib.fit_rational(torch.sin, interval=(-2, 1))


class TestAFit:
    @pytest.fixture
    def x(self):
        return torch.linspace(-2, 1, 7, dtype=torch.float64).view(7, 1)

    def test_keeps_shape_and_dtype_when_it_is_called(self, sine, x):
        assert sine(x).shape == (7, 1)
        assert sine(x).dtype == torch.float64
        assert sine(x.float()).dtype == torch.float32

    def test_says_its_largest_error(self, sine, x):
        assert (sine(x) - torch.sin(x)).abs().max() <= sine.max_error
        assert max_error(sine, torch.sin, (-2, 1)) == sine.max_error

    def test_has_denominator_coefficients_of_one_sign(self, sine):
        assert (sine.denominator >= 0).all()

    def test_keeps_its_interval(self, sine):
        assert sine.interval == (-2.0, 1.0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("sigmoid_",), "'sigmoid_' is not known; allowed are 'identity'"),
        (("swish", (-1, 4)), "degrees >= 0"),
        (("swish", (5, 4), (3, -3)), "lo < hi"),
        ((torch.log,), "not finite"),
        (("swish", (5, 4), (-3, 3), 0), "rounds=0; allowed are 1 or more"),
        ((lambda x: 1.5e308 * x.sign(), (1, 1), (-1, 1), 1), "too large to be fitted"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        katlib.fit_rational(*arguments)


@pytest.fixture
def three_threads():
    """As many threads as no fit would choose by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
class TestTheNumberOfThreads:
    """A fit computes on one thread."""

    @pytest.fixture(params=["fit_rational", "refit"])
    def run(self, request, sine):
        if request.param == "refit":
            return lambda: refit(sine, torch.sin, torch.linspace(-2, 1, 100))
        return lambda: katlib.fit_rational("tanh", (3, 2), rounds=1)

    def test_is_one_meanwhile(self, run, monkeypatch):
        seen = set()
        step = fit._damped_step

        def observed(*arguments):
            seen.add(torch.get_num_threads())
            return step(*arguments)

        monkeypatch.setattr(fit, "_damped_step", observed)
        run()
        assert seen == {1}

    def test_is_as_before_afterwards(self, run):
        run()
        assert torch.get_num_threads() == 3

    @pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
    def test_is_as_before_when_it_was_interrupted(self, run, monkeypatch, exception):
        def interrupted(*arguments):
            raise exception

        monkeypatch.setattr(fit, "_damped_step", interrupted)
        with pytest.raises(exception):
            run()
        assert torch.get_num_threads() == 3


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The file that `make coefficients` writes, of one target at one pair of degrees."""
    monkeypatch.setattr(fit, "COEFFICIENTS", tmp_path / "coefficients.json")
    monkeypatch.setattr(fit, "TARGETS", {name: TARGETS[name] for name in ("identity", "tanh")})
    monkeypatch.setattr(fit, "STORED_DEGREES", ((3, 2),))
    fit.main()
    return tmp_path / "coefficients.json"


class TestMakeCoefficients:
    def test_writes_what_is_stored(self, written):
        entry = json.loads(written.read_text())["tanh"]["3,2"]
        stored = STORED["tanh"]["3,2"]
        assert entry["max_error"] == pytest.approx(stored["max_error"], rel=1e-3)
        assert entry["numerator"] == pytest.approx(stored["numerator"], abs=1e-3)
        assert entry["denominator"] == pytest.approx(stored["denominator"], abs=1e-3)

    def test_leaves_the_identity_out(self, written):
        assert list(json.loads(written.read_text())) == ["tanh"]

    def test_says_what_it_finds(self, capsys, request):
        request.getfixturevalue("written")
        assert "tanh   (3, 2): largest error on [-3, 3] = " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, alpha", [("identity", 1.0), ("relu", 2.0), ("swish", 2.811), ("gelu", 2.352)]
)
def test_gains(name, alpha):
    assert katlib.gain(name) == pytest.approx(alpha, abs=1e-3)


@pytest.mark.parametrize(
    "function, gain",
    [
        (lambda z: z**3, 1 / 15),  # E[z^6] = 15
        (lambda z: 3 * z, 1 / 9),
        (torch.exp, math.exp(-2)),  # E[exp(2 z)] = e^2
        (F.leaky_relu, 2 / (1 + 0.01**2)),
    ],
    ids=["z^3", "3z", "exp", "leaky ReLU"],
)
def test_gains_in_closed_form(function, gain):
    assert katlib.gain(function) == pytest.approx(gain)


def test_the_gain_of_a_group_rational_is_that_of_its_start():
    layer = katlib.GroupRational(16, groups=2, init="swish")
    assert katlib.gain(layer) == pytest.approx(katlib.gain("swish"), rel=1e-4)


def test_the_gain_of_a_group_rational_is_averaged_over_its_groups():
    layer = katlib.GroupRational(16, groups=1, numerator_groups=2, init="identity")
    with torch.no_grad():
        layer.weight_numerator[1, 1] = 3.0
    # x and 3 x: E[F^2] = (1 + 9) / 2
    assert katlib.gain(layer) == pytest.approx(1 / 5)


def test_the_gain_of_a_group_rational_is_of_its_coefficients_as_they_stand():
    layer = katlib.GroupRational(16, groups=2, init="swish")
    with torch.no_grad():
        # F(x) = x in both groups
        layer.weight_numerator.zero_()[:, 1] = 1
        layer.weight_denominator.zero_()
    assert katlib.gain(layer) == pytest.approx(1.0)


def test_an_activation_of_zero_has_no_gain():
    with pytest.raises(ValueError, match="no gain"):
        katlib.gain(torch.zeros_like)


def test_the_released_gelu_was_fitted_under_another_denominator():
    """Why fits and evaluation share one Q here: the released GELU under the safe denominator."""
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
