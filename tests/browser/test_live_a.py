"""The live figures of chapters 1, 4, 7 and 13, each on a page of its own.

Their numbers are those of katlib, torch, mpmath and scipy.
"""

import json
import math
import re
from types import SimpleNamespace

import mpmath
import pytest
import torch
from scipy import stats
from test_live import PHONE, drag, drag_by_finger, knob, number

import katlib
from katlib.fit import TARGETS

pytestmark = pytest.mark.book

# a fine grid for means over z ~ N(0, 1): exact even where F(sqrt(q) z) is steep, and without a node
# at the kink of ReLU
NODES = (torch.arange(4000, dtype=torch.float64) - 1999.5) / 200
WEIGHTS = torch.exp(-(NODES**2) / 2) / torch.exp(-(NODES**2) / 2).sum()


def points_of(box, style: str, number_of_curve: int, x: tuple, y: tuple) -> list[list[float]]:
    """The points of a curve in the units of the axes x and y, from the path that is drawn."""
    path = box.locator(f"path.curve.{style}").nth(number_of_curve)
    corners = path.evaluate(
        "path => { const frame = path.closest('svg').querySelector('clipPath rect');"
        " return ['x', 'y', 'width', 'height'].map((key) => +frame.getAttribute(key)); }"
    )
    left, top, width, height = corners
    pairs = re.findall(r"[ML](\S+?) ([^ML]+)", path.get_attribute("d"))
    return [
        [
            x[0] + (float(px) - left) / width * (x[1] - x[0]),
            y[1] - (float(py) - top) / height * (y[1] - y[0]),
        ]
        for px, py in pairs
    ]


# ---- random numbers


def uniforms(seed: int):
    """The uniform random numbers of random.js: mulberry32."""
    state = seed
    while True:
        state = (state + 0x6D2B79F5) & 0xFFFFFFFF
        mixed = (state ^ (state >> 15)) * (state | 1) & 0xFFFFFFFF
        mixed ^= mixed + ((mixed ^ (mixed >> 7)) * (mixed | 61) & 0xFFFFFFFF) & 0xFFFFFFFF
        yield (mixed ^ (mixed >> 14)) / 2**32


def normals(seed: int):
    """The normal random numbers of random.js, by Box and Muller."""
    numbers = uniforms(seed)
    while True:
        radius = math.sqrt(-2 * math.log(1 - next(numbers)))
        yield radius * math.cos(2 * math.pi * next(numbers))


def draws(numbers, *shape: int) -> torch.Tensor:
    count = math.prod(shape)
    values = [next(numbers) for _ in range(count)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def test_the_normal_random_numbers_are_normal():
    values = draws(normals(3), 4000)
    assert values.mean().abs() < 4 / 4000**0.5
    assert abs(values.std() - 1) < 4 / 8000**0.5
    assert (values.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.014)


# ---- DepthExplorer


def mean(values: torch.Tensor) -> float:
    """E[f(z)], z ~ N(0, 1), from the values f(z) on the nodes."""
    return (WEIGHTS @ values).item()


def slopes(function, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize("name", TARGETS)
def test_the_variance_map_is_katlibs(show_figure, name):
    box = show_figure(katlib.DepthExplorer(name, std=0.15))
    function, factor = TARGETS[name], 64 * 0.15**2
    assert number(box, "map") == pytest.approx(factor / katlib.gain(name), abs=1e-6)
    assert number(box, "derived") == pytest.approx(math.sqrt(katlib.gain(name) / 64), abs=1e-6)
    slope = factor * mean(function(NODES) * slopes(function, NODES) * NODES)
    assert number(box, "slope") == pytest.approx(slope, abs=1e-6)


def means(name: str, factor: float, depth: int, start: float) -> tuple[float, float]:
    """RMS of the signal after the layers and of the gradient before them, by quadrature."""
    function, q, g = TARGETS[name], start, 1.0
    for _ in range(depth):
        x = math.sqrt(q) * NODES
        g *= factor * mean(slopes(function, x) ** 2)
        q = factor * mean(function(x) ** 2)
    return math.sqrt(q), math.sqrt(g)


@pytest.mark.parametrize("name", TARGETS)
def test_signal_and_gradient_follow_the_variance_map(show_figure, name):
    box = show_figure(katlib.DepthExplorer(name, std=0.2, depth=9, start=2.0))
    signal, gradient = means(name, 64 * 0.2**2, 9, 2.0)
    assert number(box, "signal") == pytest.approx(signal, rel=1e-5)
    assert number(box, "gradient") == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("name, std", [("tanh", 0.2), ("relu", 0.17), ("swish", 0.15)])
def test_a_wide_stack_does_what_the_figure_says(show_figure, name, std):
    box = show_figure(katlib.DepthExplorer(name, std=std, depth=8))
    torch.manual_seed(1)
    # sixteen stacks, as one shares its weights among the inputs; 576 channels are nine times 64
    x = torch.randn(16, 16, 576, requires_grad=True)
    y = x
    for _ in range(8):
        y = TARGETS[name](y) @ (std / 3 * torch.randn(16, 576, 576))
    y.backward(torch.randn_like(y))
    assert number(box, "signal") == pytest.approx(y.square().mean().sqrt().item(), rel=0.1)
    assert number(box, "gradient") == pytest.approx(x.grad.square().mean().sqrt().item(), rel=0.1)


def test_the_thin_lines_are_those_of_one_random_stack(show_figure):
    box = show_figure(katlib.DepthExplorer("gelu", std=0.5, depth=5, channels=8))
    numbers = normals(0)
    inputs, ends = draws(numbers, 4, 8), draws(numbers, 4, 8)
    x = inputs.requires_grad_()
    signals = [x]
    for _ in range(5):
        signals.append(TARGETS["gelu"](signals[-1]) @ (0.5 * draws(numbers, 8, 8)).T)
    end = ends / ends.square().mean(1, keepdim=True).sqrt()
    gradients = torch.autograd.grad(signals[-1], signals, end)
    for style, values in (("blue", signals), ("orange", gradients)):
        expected = torch.stack([v.square().mean(1).sqrt().log10() for v in values], 1)
        for line in range(4):
            drawn = points_of(box, f"{style}.faint", line, (0, 32), (-4, 4))
            assert [y for _, y in drawn] == pytest.approx(expected[line].tolist(), abs=1e-3)


def test_the_cobweb_goes_from_q_to_the_next_q(show_figure):
    box = show_figure(katlib.DepthExplorer("tanh", depth=3, start=2.5))
    q = [2.5]
    for _ in range(3):
        q.append(katlib.gain("tanh") * mean(torch.tanh(math.sqrt(q[-1]) * NODES) ** 2))
    drawn = points_of(box, "pink", 0, (0, 3), (0, 3))
    assert drawn[0] == pytest.approx([2.5, 0], abs=0.01)
    assert [x for x, _ in drawn[2::2]] == pytest.approx(q[1:], abs=0.01)


def test_dragging_the_map_changes_the_std(show_figure):
    box = show_figure(katlib.DepthExplorer())
    drag(box.page, knob(box, "std"), 0, -60)
    assert number(box, "map") > 1.3
    std = float(box.get_by_label("std of the weights", exact=True).get_attribute("data-value"))
    assert std == pytest.approx(math.sqrt(number(box, "map") * katlib.gain("swish") / 64))


def test_the_derived_std_belongs_to_the_function(show_figure):
    box = show_figure(katlib.DepthExplorer("swish"))
    box.get_by_label("function").select_option("tanh")
    assert number(box, "map") > 1.1
    box.get_by_role("button", name="derived std").click()
    assert number(box, "map") == pytest.approx(1)


def test_a_key_on_the_depth_adds_a_layer(show_figure):
    box = show_figure(katlib.DepthExplorer("relu", std=0.1, depth=4))
    knob(box, "depth").focus()
    box.page.keyboard.press("ArrowRight")
    signal, _ = means("relu", 64 * 0.1**2, 5, 1.0)
    assert number(box, "signal") == pytest.approx(signal, rel=1e-5)
    assert knob(box, "depth").get_attribute("aria-valuetext") == "5 layers"


@pytest.mark.parametrize("name", ["swish", "tanh"])
def test_chapter_7_says_what_another_std_does(show_figure, name):
    derived = math.sqrt(katlib.gain(name) / 64)
    boxes = [
        show_figure(katlib.DepthExplorer(name, std=derived * factor, start=1.25))
        for factor in (0.95, 1.05)
    ]
    signals = [number(box, "signal") for box in boxes]
    gradients = [number(box, "gradient") for box in boxes]
    if name == "swish":
        # it fades and it explodes
        assert signals[0] < 0.1
        assert signals[1] > 10
    else:
        # it settles, and the gradient grows, the more so the larger the std
        assert 0.8 < signals[0] < 1 < signals[1] < 1.2
        assert 2 < gradients[0] < gradients[1]


def test_other_weights_are_another_stack(show_figure):
    box = show_figure(katlib.DepthExplorer("tanh"))
    thin = box.locator("path.curve.blue.faint").first
    before, signal = thin.get_attribute("d"), number(box, "signal")
    box.get_by_role("button", name="other weights").click()
    assert number(box, "signal") == signal
    assert thin.get_attribute("d") != before


def test_a_signal_that_vanishes_is_still_a_number(show_figure):
    box = show_figure(katlib.DepthExplorer("swish", std=0.001, depth=32))
    signal, _ = means("swish", 64 * 0.001**2, 32, 1.0)
    assert 0 < number(box, "signal") == pytest.approx(signal, rel=1e-3)


# ---- PadeExplorer

EXACT = {
    "swish": lambda x: x / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "exp": mpmath.exp,
}


def series(name: str, count: int) -> list:
    """The Taylor coefficients c_0 .. c_(count - 1) at 0, to 40 digits."""
    with mpmath.workdps(80):
        # differentiating by a contour integral is exact to many digits
        return mpmath.taylor(EXACT[name], 0, count - 1, method="quad", radius=1)


def ratio_of(box) -> tuple[list[float], list[float]]:
    """The coefficients a and b of the ratio that the figure shows."""
    return json.loads(box.locator('output[data-key="count"]').get_attribute("data-value"))


def poles_of(box) -> list[complex]:
    found = json.loads(box.locator('output[data-key="poles"]').get_attribute("data-value"))
    return [complex(*pole) for pole in found]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("m, n", [(3, 2), (5, 4), (8, 6)])
def test_the_ratio_is_mpmaths(show_figure, name, m, n):
    box = show_figure(katlib.PadeExplorer(name, degrees=(m, n)))
    with mpmath.workdps(40):
        p, q = mpmath.pade(series(name, m + n + 1), m, n)
    a, b = ratio_of(box)
    assert a == pytest.approx([float(value) for value in p], abs=1e-12, rel=1e-9)
    assert [1, *b] == pytest.approx([float(value) for value in q], abs=1e-12, rel=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_the_crosses_are_the_zeros_of_the_denominator(show_figure, name):
    box = show_figure(katlib.PadeExplorer(name, degrees=(5, 4)))
    _, b = ratio_of(box)
    expected = mpmath.polyroots([*b[::-1], 1.0], maxsteps=500, extraprec=200)
    found = poles_of(box)
    assert len(found) == 4
    assert all(min(abs(pole - complex(root)) for pole in found) < 1e-6 for root in expected)


def test_the_ratio_of_swish_finds_its_nearest_poles(show_figure):
    box = show_figure(katlib.PadeExplorer("swish"))
    assert number(box, "radius") == pytest.approx(math.pi)
    assert poles_of(box)[:2] == pytest.approx([-1j * math.pi, 1j * math.pi], abs=1e-3)
    assert "± 3.142 i" in box.locator('output[data-key="poles"]').text_content()


def test_chapter_4_says_where_the_crosses_stand(show_figure):
    # near the first rings of swish from degree 2 on
    pair = poles_of(show_figure(katlib.PadeExplorer("swish", degrees=(5, 2))))
    assert pair == pytest.approx([-1j * math.pi, 1j * math.pi], abs=0.03)
    # and for GELU at some degrees on the real line
    real = [
        pole
        for n in (4, 5, 6)
        for pole in poles_of(show_figure(katlib.PadeExplorer("gelu", degrees=(5, n))))
        if abs(pole.imag) < 1e-9
    ]
    assert real


def test_the_errors_at_x_are_those_of_ratio_and_polynomial(show_figure):
    box = show_figure(katlib.PadeExplorer("swish"))
    assert number(box, "ratio") == pytest.approx(-1.1e-3, abs=5e-5)
    taylor = sum(c * 4**k for k, c in enumerate(series("swish", 10))) - EXACT["swish"](4)
    assert number(box, "taylor") == pytest.approx(float(taylor), rel=1e-9)
    drag(box.page, knob(box, "x"), -60, 0)
    assert abs(number(box, "taylor")) < 1


def test_without_a_denominator_the_ratio_is_the_taylor_polynomial(show_figure):
    box = show_figure(katlib.PadeExplorer("gelu", degrees=(6, 4)))
    box.get_by_label("degree of Q").fill("0")
    assert number(box, "ratio") == pytest.approx(number(box, "taylor"))
    assert box.locator('output[data-key="poles"]').text_content() == "none"


def test_degrees_without_a_ratio_of_their_own_say_so(show_figure):
    box = show_figure(katlib.PadeExplorer("tanh", degrees=(4, 3)))
    smaller = show_figure(katlib.PadeExplorer("tanh", degrees=(3, 2)))
    assert ratio_of(box) == ratio_of(smaller)
    assert "This is that of (3, 2)." in box.text_content()
    assert "This is that of" not in smaller.text_content()


def test_the_disc_ends_at_the_nearest_poles_and_is_round(show_figure):
    box = show_figure(katlib.PadeExplorer("tanh"))
    disc, line = (box.locator(f"svg >> nth={i} >> path.curve.pink") for i in (1, 0))
    # the radii of the arc that is drawn
    radii = re.search(r"a(\S+) (\S+) 0 1 0", disc.get_attribute("d")).groups()
    height = box.locator("svg").nth(1).locator("clipPath rect").get_attribute("height")
    assert radii[0] == radii[1]
    assert float(radii[0]) == pytest.approx(float(height) / 29 * math.pi / 2, abs=0.1)
    assert line.get_attribute("d").count("M") == 2


def test_the_exponential_converges_everywhere(show_figure):
    box = show_figure(katlib.PadeExplorer("exp"))
    assert number(box, "radius") == float("inf")
    assert box.locator("svg >> nth=1 >> path.area").get_attribute("d") == ""


# ---- FitExplorer

X = torch.linspace(-1, 1, 101, dtype=torch.float64)
BUMP = torch.exp(-8 * X**2)


@pytest.fixture
def show_fit(show_figure):
    """A function that shows a FitExplorer and waits until it is trained."""

    def show_(*arguments, reduced_motion: str = "no-preference", **options):
        explorer = katlib.FitExplorer(*arguments, **options)
        box = show_figure(explorer, reduced_motion=reduced_motion)
        settle(box)
        return box

    return show_


def settle(box) -> None:
    """Waits until what was asked for is drawn; a FitExplorer trains first."""
    box.page.wait_for_timeout(150)
    while box.locator('[aria-busy="true"]').count():
        box.page.wait_for_timeout(20)
    box.page.wait_for_timeout(100)


def parameters_of(box, side: str) -> torch.Tensor:
    output = box.locator(f'output[data-key="parameters {side}"]')
    return torch.tensor(json.loads(output.get_attribute("data-value")), dtype=torch.float64)


def network(box, side: str, activation=None) -> torch.Tensor:
    """The values of a network at X, from the parameters that the figure found."""
    p, units = parameters_of(box, side), int(number(box, f"units {side}"))
    w, t, v = p[1 : 1 + 3 * units].reshape(units, 3).T
    u = X[:, None] * w + t
    if activation is None:
        a, b = p[1 + 3 * units :].split([6, 4])
        # one group, whose channels are the units
        return p[0] + katlib.rational(u, a[None], b[None]) @ v
    return p[0] + activation(u) @ v


def relative_error(values: torch.Tensor, target: torch.Tensor) -> float:
    return ((values - target).square().mean().sqrt() / target.std(correction=0)).item()


@pytest.mark.parametrize("name", ["gelu", "relu", "tanh"])
def test_the_errors_are_those_of_networks_in_torch(show_fit, name):
    box = show_fit(activation=name, units=3, learned_units=2)
    fixed, learned = network(box, "fixed", TARGETS[name]), network(box, "learned")
    assert number(box, "error fixed") == pytest.approx(relative_error(fixed, BUMP), abs=1e-6)
    assert number(box, "error learned") == pytest.approx(relative_error(learned, BUMP), abs=1e-6)


def test_the_curves_are_those_of_the_networks(show_fit):
    box = show_fit("wave", units=3)
    for style, values in (
        ("orange", network(box, "fixed", TARGETS["gelu"])),
        ("blue", network(box, "learned")),
    ):
        drawn = dict(points_of(box, style, 0, (-1, 1), (-1.5, 1.5)))
        # where a drawn point lies on one of the 101 inputs
        near = {x: y for x, y in drawn.items() if abs(x * 50 - round(x * 50)) < 0.01}
        expected = [values[round(50 + 50 * x)].item() for x in near]
        assert len(near) > 5
        assert list(near.values()) == pytest.approx(expected, abs=0.02)


def test_one_learned_unit_makes_the_bump_and_one_gelu_does_not(show_fit):
    box = show_fit()
    assert len(parameters_of(box, "fixed")) == 4
    assert len(parameters_of(box, "learned")) == 14
    assert number(box, "error fixed") > 0.5
    assert number(box, "error learned") < 0.1


def errors_with(box, *counts: int) -> list[float]:
    """The errors of the network with a fixed activation as it gets more units."""
    found = []
    for units in counts:
        box.get_by_label("units of the fixed one").fill(str(units))
        settle(box)
        found.append(number(box, "error fixed"))
    return found


def test_on_the_bump_gelu_takes_four_units_as_chapter_1_says(show_fit):
    box = show_fit("bump")
    learned = number(box, "error learned")
    three, four = errors_with(box, 2, 3, 4)[1:]
    assert four < learned < three
    assert len(parameters_of(box, "fixed")) == 13


def test_on_a_corner_twelve_gelu_units_are_not_enough(show_fit):
    box = show_fit("corner")
    assert min(errors_with(box, *range(2, 13))) > 10 * number(box, "error learned")


def test_another_unit_never_makes_the_error_larger(show_fit):
    box = show_fit("wave")
    errors = [number(box, "error fixed"), *errors_with(box, 2, 3, 4)]
    assert len(parameters_of(box, "fixed")) == 13
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_the_training_ends_where_the_gradient_is_zero(show_fit):
    box = show_fit(activation="tanh", units=2)
    p = parameters_of(box, "fixed").requires_grad_()
    w, t, v = p[1:].reshape(2, 3).T
    squares = (p[0] + torch.tanh(X[:, None] * w + t) @ v - BUMP).square().sum()
    loss = squares + 1e-4 * p.square().sum()
    assert torch.autograd.grad(loss, p)[0].abs().max() < 1e-3


def test_a_dragged_curve_is_followed(show_fit):
    box = show_fit(units=4)
    before = curve_of_target(box)
    drag(box.page, knob(box, "6"), 0, -50)
    settle(box)
    after = curve_of_target(box)
    # a hill around x = 0.6 that ends at its neighbours
    assert after[80] - before[80] == pytest.approx(50 / 236 * 3, abs=0.05)
    assert (after - before)[:65].abs().max() < 0.02
    assert number(box, "error learned") == pytest.approx(
        relative_error(network(box, "learned"), after), abs=0.02
    )


def curve_of_target(box) -> torch.Tensor:
    """The curve that is to be followed, as it is drawn, at the 101 inputs."""
    drawn = points_of(box, "ink.wide", 0, (-1, 1), (-1.5, 1.5))
    nearest = [min(drawn, key=lambda point: abs(point[0] - x))[1] for x in X.tolist()]
    return torch.tensor(nearest, dtype=torch.float64)


def test_other_weights_lead_elsewhere(show_fit):
    box = show_fit("wave", units=4)
    before = parameters_of(box, "fixed")
    box.get_by_role("button", name="other starting weights").click()
    settle(box)
    assert not torch.equal(parameters_of(box, "fixed"), before)


def test_with_reduced_motion_the_training_is_not_shown(show_fit):
    box = show_fit("wave", units=6, reduced_motion="reduce")
    path = box.locator("path.curve.orange").first
    knob(box, "4").focus()
    seen = {path.get_attribute("d")}
    box.page.keyboard.press("Shift+ArrowUp")
    while box.locator('table[aria-busy="true"]').count():
        seen.add(path.get_attribute("d"))
    box.page.wait_for_timeout(100)
    # before and after, and nothing between
    assert len(seen | {path.get_attribute("d")}) == 2


# ---- SeedsExplorer

STUDIES = 50


def studies_of(seeds: int, difference: float, scatter: float, multiplier: float):
    """Means and half widths of the first studies that the figure draws."""
    drawn = draws(normals(0), STUDIES, 20)[:, :seeds]
    values = difference + scatter * drawn
    return values.mean(1), multiplier * values.std(1) / math.sqrt(seeds)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 20])
def test_the_intervals_are_students(show_figure, seeds):
    box = show_figure(katlib.SeedsExplorer(difference=0.4, scatter=0.9, seeds=seeds))
    factor = stats.t.ppf(0.975, seeds - 1)
    means, halves = studies_of(seeds, 0.4, 0.9, factor)
    assert number(box, "factor") == pytest.approx(factor, abs=1e-6)
    assert number(box, "missed") == ((means - 0.4).abs() > halves).double().mean()
    assert number(box, "found") == (means.abs() > halves).double().mean()
    assert number(box, "expected") == pytest.approx(0.05)


@pytest.mark.parametrize("seeds", [2, 3, 6, 20])
def test_with_the_normal_factor_more_are_expected_to_miss(show_figure, seeds):
    box = show_figure(katlib.SeedsExplorer(seeds=seeds, multiplier="normal"))
    expected = 2 * stats.t.sf(1.96, seeds - 1)
    assert number(box, "expected") == pytest.approx(expected, abs=1e-6)
    assert number(box, "expected") > 0.05


@pytest.mark.parametrize("multiplier", ["t", "normal"])
def test_as_many_intervals_miss_as_expected(show_figure, multiplier):
    box = show_figure(katlib.SeedsExplorer(seeds=3, multiplier=multiplier))
    for _ in range(20):
        box.get_by_role("button", name="100 more").click()
    count, expected = number(box, "studies"), number(box, "expected")
    assert count == 2050
    deviation = math.sqrt(expected * (1 - expected) / count)
    assert abs(number(box, "missed") - expected) < 4 * deviation


def test_the_intervals_that_miss_are_drawn_in_their_colour(show_figure):
    box = show_figure(katlib.SeedsExplorer(seeds=3, multiplier="normal"))
    drawn = {
        style: points_of(box, style, 0, (-1, 52), (-3, 3)) for style in ("blue", "orange.strong")
    }
    means, halves = studies_of(3, 0.5, 1.0, 1.96)
    missing = (means - 0.5).abs() > halves
    assert len(drawn["orange.strong"]) == 2 * missing.sum()
    assert len(drawn["blue"]) == 2 * (~missing).sum()
    first = (means[missing] - halves[missing])[0].item()
    assert drawn["orange.strong"][0][1] == pytest.approx(first, abs=0.01)


def test_another_truth_moves_all_studies_with_it(show_figure):
    box = show_figure(katlib.SeedsExplorer())
    missed, found = number(box, "missed"), number(box, "found")
    drag(box.page, knob(box, "truth"), 0, -70)
    assert number(box, "missed") == missed
    assert number(box, "found") > found


def test_a_smaller_scatter_finds_the_difference_more_often(show_figure):
    box = show_figure(katlib.SeedsExplorer())
    found = number(box, "found")
    box.get_by_label("scatter", exact=True).last.fill("0.3")
    assert number(box, "found") > found


def test_one_more_study_is_one_more(show_figure):
    box = show_figure(katlib.SeedsExplorer())
    box.get_by_role("button", name="one more study").click()
    assert number(box, "studies") == STUDIES + 1


# ---- what all of them do

FIGURES = {
    "depth": katlib.DepthExplorer,
    "pade": katlib.PadeExplorer,
    "fit": katlib.FitExplorer,
    "seeds": katlib.SeedsExplorer,
}
each = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)


@each
def test_a_phone_shows_the_whole_figure(show_figure, make):
    box = show_figure(make(), **PHONE)
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert box.evaluate(
        "box => [...box.querySelectorAll('svg .name')].every((name) => {"
        " const here = name.getBoundingClientRect(); return here.left >= 0 && here.right <= 390; })"
    )


@each
def test_a_finger_moves_the_first_handle(show_figure, make):
    box = show_figure(make(), **PHONE)
    handle = box.locator(".knob").first
    before = handle.get_attribute("aria-valuenow")
    along_x = handle.get_attribute("aria-orientation") == "horizontal"
    drag_by_finger(box.page, handle, 25 if along_x else 0, 0 if along_x else -25)
    box.page.wait_for_timeout(200)
    assert handle.get_attribute("aria-valuenow") != before


@each
def test_the_figure_is_dark_on_a_dark_page(show_figure, make):
    box = show_figure(make(), theme="dark")
    assert box.evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(24, 27, 32)"


@each
def test_everything_that_can_be_moved_has_a_name(show_figure, make):
    box = show_figure(make())
    controls = box.locator("button, input, select, [role=slider]")
    names = controls.evaluate_all(
        "nodes => nodes.map((node) => node.getAttribute('aria-label') ?? node.textContent)"
    )
    assert len(names) >= 4
    assert all(name.strip() for name in names)


@each
def test_the_key_r_takes_everything_back(show_figure, make):
    box = show_figure(make())
    read = "box => [...box.querySelectorAll('output')].map((node) => node.dataset.value)"
    settle(box)
    before = box.evaluate(read)
    handle = box.locator(".knob").first
    handle.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp"):
        box.page.keyboard.press(key)
    settle(box)
    assert box.evaluate(read) != before
    box.page.keyboard.press("r")
    settle(box)
    assert box.evaluate(read) == before


DAMAGES = [
    ("depth", {"function": "selu"}),
    ("depth", {"std": None}),
    ("depth", {"depth": 1.5}),
    ("depth", {"start": -1}),
    ("depth", {"channels": 10**9}),
    ("pade", {"target": "mish"}),
    ("pade", {"degrees": [0, 4]}),
    ("pade", {"degrees": [5, 7]}),
    ("fit", {"target": "hat"}),
    ("fit", {"offsets": [0, 1]}),
    ("fit", {"activation": "swish"}),
    ("fit", {"units": 0}),
    ("fit", {"learned_units": 99}),
    ("fit", {"presets": []}),
    ("seeds", {"difference": "0"}),
    ("seeds", {"scatter": 0}),
    ("seeds", {"seeds": 1}),
    ("seeds", {"multiplier": "z"}),
]


@pytest.mark.parametrize("name, damage", DAMAGES, ids=str)
def test_a_figure_whose_state_is_damaged_says_so(show_figure, name, damage):
    state = FIGURES[name]().get_state() | damage
    box = show_figure(SimpleNamespace(get_state=lambda: state))
    assert f"is damaged ({next(iter(damage))})" in box.text_content()
