"""Fits under the denominator that is evaluated, and gains by quadrature."""

import json
import math

import pytest
import torch
from torch import nn
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
        (("swish", (5, 4), (-3, math.inf)), "a finite interval"),
        ((torch.log,), "not finite"),
        (("swish", (5, 4), (-3, 3), 0), "rounds=0; allowed are 1 or more"),
        ((lambda x: 1.5e308 * x.sign(), (1, 1), (-1, 1), 1), "too large to be fitted"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        katlib.fit_rational(*arguments)


def prelu(slope=0.25, **options):
    return nn.PReLU(init=slope, **options)


def square_of(x):
    """d(x^3 / 3) / dx, by autograd."""
    return torch.autograd.grad((x.requires_grad_() ** 3 / 3).sum(), x)[0]


# a target as people have it, and the same function without its peculiarity
PECULIAR_TARGETS = {
    "in-place SiLU": (nn.SiLU(inplace=True), F.silu),
    "in-place function": (lambda x: x.mul_(2).tanh_(), lambda x: torch.tanh(2 * x)),
    "PReLU that learns": (prelu(), lambda x: F.leaky_relu(x, 0.25)),
    "PReLU in half precision": (prelu().half(), lambda x: F.leaky_relu(x, 0.25)),
    "function that asks for gradients": (
        lambda x: x * torch.ones(1, dtype=torch.float64, requires_grad=True),
        lambda x: x,
    ),
    "derivative by autograd": (square_of, torch.square),
    "RReLU in training mode": (nn.RReLU(0.2, 0.2 + 1e-9), lambda x: F.leaky_relu(x, 0.2)),
    "dropout in training mode": (nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), torch.tanh),
    "function in float32": (lambda x: x.float().tanh(), torch.tanh),
}


@pytest.mark.parametrize("target, plain", PECULIAR_TARGETS.values(), ids=PECULIAR_TARGETS)
class TestAPeculiarTarget:
    def test_is_fitted_as_the_function_that_it_is(self, target, plain):
        fitted = katlib.fit_rational(target, (3, 2), rounds=3)
        assert fitted.max_error == pytest.approx(max_error(fitted, plain), abs=1e-6)
        assert fitted.max_error == pytest.approx(
            katlib.fit_rational(plain, (3, 2), rounds=3).max_error, rel=1e-2, abs=1e-6
        )
        assert not fitted.numerator.requires_grad

    def test_is_refitted_as_the_function_that_it_is(self, target, plain, sine):
        samples = torch.linspace(-2, 1, 100, dtype=torch.float64)
        fitted = refit(sine, target, samples)
        expected = refit(sine, plain, samples.clone())
        assert fitted.max_error == pytest.approx(expected.max_error, rel=1e-2, abs=1e-6)

    def test_has_the_gain_of_the_function_that_it_is(self, target, plain):
        assert katlib.gain(target) == pytest.approx(katlib.gain(plain), rel=1e-6)
        assert katlib.gain("relu") == pytest.approx(2.0)


def test_a_module_that_is_fitted_stays_as_it_is():
    module = nn.Sequential(nn.Dropout(0.5), prelu().half())
    katlib.fit_rational(module, (3, 2), rounds=1)
    assert module.training and module[0].training
    assert module[1].weight.dtype == torch.float16
    assert module[1].weight.requires_grad and module[1].weight.grad is None


@pytest.mark.parametrize(
    "target, words",
    [
        (lambda x: F.dropout(x, 0.5), "target is random: two calls"),
        (lambda x: F.rrelu(x, training=True), "target is random: two calls"),
        (prelu(device="meta"), "target PReLU is on the meta device, where it has no numbers"),
        (lambda x: prelu()(x), "target cannot be computed for a torch.float64 tensor of shape"),
        (lambda x: x.half(), "must return float32 or float64 values; it returned torch.float16"),
        (lambda x: torch.complex(x, x), "it returned torch.complex128 on cpu"),
        (lambda x: x.to("meta"), "it returned torch.float64 on meta"),
        (lambda x: x.sum(), r"argument's shape, .601,.; it returned shape .."),
        (lambda x: 1.0, "it returned a float"),
    ],
)
def test_a_target_that_has_no_values_to_fit_is_refused(target, words):
    with pytest.raises(ValueError, match=words):
        katlib.fit_rational(target, (3, 2), rounds=1)


@pytest.mark.parametrize(
    "samples, words",
    [
        (torch.empty(0), "0 samples; allowed are 1 or more finite numbers"),
        (torch.tensor([1.0, math.nan]), "2 samples; allowed are 1 or more finite numbers"),
    ],
)
def test_samples_that_say_nothing_are_refused(samples, words, sine):
    with pytest.raises(ValueError, match=words):
        refit(sine, torch.sin, samples)


def test_a_target_that_is_not_finite_at_a_sample_is_refused(sine):
    with pytest.raises(ValueError, match="not finite on the samples and the interval, at x = 5"):
        refit(sine, lambda x: torch.where(x > 4, math.inf, x), torch.tensor([0.0, 5.0]))


@pytest.fixture(
    params=[torch.float64, torch.bfloat16, torch.float16, "meta"], ids=lambda given: str(given)
)
def other_default(request):
    """Another default dtype, or another default device."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device.type == "cpu" else device)


class TestOtherDefaults:
    """Everything is computed in float64 on the CPU, whatever torch's defaults are."""

    @pytest.fixture(autouse=True)
    def expected(self, sine):
        """What is computed under the usual defaults, before the others are set."""
        samples = torch.linspace(-2, 1, 100, dtype=torch.float64)
        return {
            "fit": katlib.fit_rational("tanh", (3, 2), rounds=3),
            "refit": refit(sine, torch.sin, samples),
            "samples": samples,
        }

    @pytest.fixture(autouse=True)
    def others(self, expected, request):
        request.getfixturevalue("other_default")

    def test_change_no_fit(self, expected, other_default):
        fitted = katlib.fit_rational("tanh", (3, 2), rounds=3)
        assert torch.equal(fitted.numerator, expected["fit"].numerator)
        assert torch.equal(fitted.denominator, expected["fit"].denominator)

    def test_change_no_refit(self, expected, sine, other_default):
        fitted = refit(sine, torch.sin, expected["samples"])
        assert torch.equal(fitted.numerator, expected["refit"].numerator)

    def test_change_no_value(self, expected, other_default):
        x = expected["samples"]
        assert (expected["fit"](x) - x.tanh()).abs().max() <= 1.01 * expected["fit"].max_error
        assert max_error(expected["fit"], "tanh") == expected["fit"].max_error

    def test_do_not_reach_what_a_target_makes(self, other_default):
        fitted = katlib.fit_rational(
            lambda x: torch.maximum(x, torch.zeros(1).double()), (3, 2), rounds=1
        )
        assert fitted.max_error == katlib.fit_rational("relu", (3, 2), rounds=1).max_error


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
