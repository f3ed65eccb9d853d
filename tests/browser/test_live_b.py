"""The live figures of chapters 3, 6, 8 and 15: their counts, sums and errors are katlib's."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import katlib
from katlib.book.meter import Meter, meter
from katlib.fit import max_error
from katlib.spline import bspline_basis

PHONE = dict(width=390, height=844, has_touch=True, is_mobile=True)


# ---- what a reader sees and does


def number(box, key: str) -> float:
    # the figure draws once a frame
    box.page.wait_for_timeout(60)
    value = box.locator(f'output[data-key="{key}"]').get_attribute("data-value")
    return float(value.replace("Infinity", "inf"))


def knob(box, name: str):
    return box.locator(f'.knob[data-name="{name}"]')


def centre(node) -> tuple[float, float]:
    box = node.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(handle, dx: float, dy: float) -> None:
    """Drags a handle by so many pixels, with the mouse."""
    mouse = handle.page.mouse
    handle.scroll_into_view_if_needed()
    x, y = centre(handle.locator(".dot, .plate").first)
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + dx / 2, y + dy / 2)
    mouse.move(x + dx, y + dy)
    mouse.up()


def press(handle, *keys: str) -> None:
    handle.focus()
    for key in keys:
        handle.page.keyboard.press(key)
    handle.page.wait_for_timeout(60)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- GroupExplorer


@pytest.fixture
def groups(show_figure):
    return show_figure(katlib.GroupExplorer())


def functions(box) -> list[int]:
    """The functions F1 .. F8 of the channels x1 .. x8, by their numbers."""
    box.page.wait_for_timeout(60)
    knobs = box.locator('.knob[data-name^="channel"]')
    return [int(knobs.nth(i).get_attribute("aria-valuenow")) for i in range(knobs.count())]


def assert_counts_of_a_grkan(box, groups: int, numerator_groups: int) -> None:
    """Parameters at 192 → 768 are those of katlib's layer with so many groups."""
    layer = katlib.GRKAN(192, 768, groups, bias=False, numerator_groups=numerator_groups)
    assert number(box, "coefficients full") == count(layer.act)
    assert number(box, "weights full") == count(layer.fc)
    expected_ratio = count(layer) / count(layer.fc)
    assert number(box, "parameters ratio") == pytest.approx(expected_ratio, rel=1e-12)


@pytest.mark.parametrize("count_of_groups", [4, 2, 1])
def test_groups_have_the_parameters_of_katlibs_layer(groups, count_of_groups):
    name = f"{count_of_groups} group{'s' if count_of_groups > 1 else ''}"
    groups.locator(f'button[data-preset="{name}"]').click()
    assert_counts_of_a_grkan(groups, count_of_groups, numerator_groups=count_of_groups)


def test_a_function_for_each_channel_has_the_parameters_of_katlibs_layer(groups):
    groups.locator('button[data-preset="each channel"]').click()
    assert_counts_of_a_grkan(groups, 192, numerator_groups=192)


def test_one_numerator_for_all_has_the_parameters_of_katlibs_layer(show_figure):
    box = show_figure(katlib.GroupExplorer(list(range(8))))
    box.get_by_label("one numerator for all").check()
    assert_counts_of_a_grkan(box, 8, numerator_groups=1)


def test_a_function_for_each_edge_has_ten_coefficients_on_each(groups):
    groups.locator('button[data-preset="each edge"]').click()
    on_an_edge = count(katlib.GroupRational(1, 1))
    assert number(groups, "functions drawn") == 8 * 3
    assert number(groups, "coefficients drawn") == on_an_edge * 8 * 3
    assert number(groups, "coefficients full") == on_an_edge * 192 * 768


def function_operations(box) -> float:
    """Operations of the functions alone, at 192 → 768."""
    return number(box, "operations full") - 2 * 192 * 768


def test_groups_do_not_change_how_often_a_function_is_computed(groups):
    operations = set()
    for name in ("each channel", "4 groups", "1 group"):
        groups.locator(f'button[data-preset="{name}"]').click()
        operations.add(function_operations(groups))
    # the paper's count for one number, 2 m + 2 n + 3
    assert operations == {21 * 192}


def test_a_function_for_each_edge_is_computed_for_each_output(groups):
    groups.locator('button[data-preset="each edge"]').click()
    assert function_operations(groups) == 21 * 192 * 768


def test_dragging_a_box_onto_another_channel_shares_its_function(groups):
    assert functions(groups) == [1, 1, 2, 2, 3, 3, 4, 4]
    drag(knob(groups, "channel 8"), 0, -38 * 7)
    assert functions(groups) == [1, 1, 2, 2, 3, 3, 4, 1]
    assert number(groups, "stretches full") == 5


def test_a_box_dragged_back_has_its_own_function_again(groups):
    x, y = centre(knob(groups, "channel 3").locator(".plate"))
    mouse = groups.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x, y - 76)
    assert functions(groups)[2] == 1
    mouse.move(x, y)
    assert functions(groups)[2] == 2


def test_keys_choose_a_channels_function_and_r_resets(groups):
    press(knob(groups, "channel 2"), "ArrowDown", "ArrowDown")
    assert functions(groups)[1] == 3
    assert knob(groups, "channel 2").get_attribute("aria-valuetext") == (
        "F3, shared with channel 5, 6"
    )
    press(knob(groups, "channel 2"), "r")
    assert functions(groups) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_finger_drags_a_box_without_scrolling_the_page(show_figure):
    box = show_figure(katlib.GroupExplorer(), **PHONE)
    handle = knob(box, "channel 8")
    assert handle.evaluate("node => getComputedStyle(node).touchAction") == "none"
    x, y = centre(handle.locator(".plate"))
    screen = box.page.context.new_cdp_session(box.page)
    for event, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x, "y": y - 38 * 2}]),
        ("touchEnd", []),
    ):
        screen.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": points})
    assert functions(box) == [1, 1, 2, 2, 3, 3, 4, 3]


def test_on_edges_there_is_no_box_to_drag(groups):
    groups.locator('button[data-preset="each edge"]').click()
    groups.page.wait_for_timeout(60)
    assert not knob(groups, "channel 1").is_visible()


# ---- SummationExplorer

LENGTHS = [0, 1, 5, 8, 11]


def uniform(count: int) -> torch.Tensor:
    """The figure's even numbers between 0 and 1, by its linear congruential generator."""
    seed, found = 1, []
    for _ in range(count):
        seed = (1664525 * seed + 1013904223) % 2**32
        found.append((seed >> 8) / 2**24)
    return torch.tensor(found, dtype=torch.float64)


def terms_of(kind: str, dtype: torch.dtype, count: int) -> torch.Tensor:
    random = uniform(count)
    made = {"ones": torch.ones(count), "one sign": random, "both signs": random - 0.5}
    return made[kind].to(dtype)


def one_by_one(terms: torch.Tensor) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def tree(terms: torch.Tensor) -> torch.Tensor:
    while len(terms) > 1:
        terms = terms[0::2] + terms[1::2]
    return terms[0]


def threads(terms: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(32, dtype=terms.dtype)
    for some in terms.split(32):
        sums[: len(some)] += some
    return tree(sums)


ORDERS = {"one by one": one_by_one, "32 threads": threads, "tree": tree}


def choose(box, **options: str) -> None:
    for key, value in options.items():
        box.locator(f'button[data-{key}="{value}"]').click()


def add(box, steps: int) -> None:
    """Adds 2^steps terms."""
    handle = knob(box, "n")
    now = round(float(handle.get_attribute("aria-valuenow")))
    press(handle, *["ArrowRight" if steps > now else "ArrowLeft"] * abs(steps - now))


@pytest.fixture
def sums(show_figure):
    return show_figure(katlib.SummationExplorer(steps=0))


@pytest.mark.parametrize("kind", ["ones", "one sign", "both signs"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_is_pytorchs_in_the_same_order_bit_for_bit(sums, order, name, kind):
    choose(sums, order=order, format=name, terms=kind)
    for steps in LENGTHS:
        add(sums, steps)
        terms = terms_of(kind, getattr(torch, name), 2**steps)
        assert number(sums, "sum") == ORDERS[order](terms).item()
        assert number(sums, "exact") == terms.double().sum().item()


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_a_million_terms_one_by_one_are_numpys_running_sum(show_figure, name):
    box = show_figure(katlib.SummationExplorer(format=name))
    terms = terms_of("one sign", getattr(torch, name), 2**20).numpy()
    total = np.add.accumulate(terms, dtype=terms.dtype)[-1]
    assert number(box, "sum") == float(total)
    exact = terms.astype(float).sum()
    assert number(box, "error") == pytest.approx(abs(float(total) - exact) / exact, rel=1e-9)


def test_half_precision_stands_still_where_its_digits_end(sums):
    choose(sums, format="bfloat16", terms="ones")
    add(sums, 12)
    assert number(sums, "sum") == 256
    choose(sums, order="tree")
    assert number(sums, "sum") == 4096


def test_a_sum_too_large_for_float16_is_infinite(sums):
    choose(sums, order="tree", format="float16", terms="ones")
    add(sums, 16)
    assert number(sums, "sum") == float("inf")
    assert number(sums, "right") == 0


def test_the_last_addition_is_shown_in_binary(sums):
    choose(sums, format="bfloat16", terms="ones")
    add(sums, 10)
    rows = sums.locator("pre").inner_text().splitlines()
    assert [row.split()[-1] for row in rows] == ["10000000", "1", "10000000"]
    # 256 has its last digit at 2, so the 1 does not fit
    assert number(sums, "lost") == 1
    assert sums.locator("pre .lost").all_inner_texts() == ["", "1", ""]


def test_the_number_of_terms_follows_the_mouse(show_figure):
    box = show_figure(katlib.SummationExplorer(format="bfloat16"))
    drag(knob(box, "n"), -200, 0)
    steps = math.log2(number(box, "n"))
    assert steps == int(steps)
    assert 5 < steps < 15


def test_the_key_r_resets_the_sum(sums):
    choose(sums, order="tree", format="float16")
    press(knob(sums, "n"), "ArrowRight", "r")
    assert number(sums, "n") == 1
    assert sums.locator('button[data-order="one by one"]').get_attribute("aria-pressed") == "true"


# ---- SplineCostExplorer

SIZES = [(5, 3), (1, 1), (20, 4), (12, 2), (8, 0)]


def show_cost(show_figure, grid: int, order: int):
    return show_figure(katlib.SplineCostExplorer(grid=grid, order=order))


def metered_basis(grid: int, order: int) -> Meter:
    knots = torch.empty(grid + 2 * order + 1, device="meta")
    return meter(bspline_basis, torch.empty(512, 128, device="meta"), knots, order)


@pytest.mark.parametrize("grid, order", SIZES)
def test_kernels_and_bytes_of_a_basis_are_those_that_the_meter_counts(show_figure, grid, order):
    box, m = show_cost(show_figure, grid, order), metered_basis(grid, order)
    assert number(box, "passes basis") == len(m.kernels)
    assert number(box, "bytes basis") == pytest.approx(m.moved / (512 * 128), rel=1e-12)


@pytest.mark.parametrize("grid, order", SIZES)
def test_bytes_and_operations_of_the_product_are_those_that_the_meter_counts(
    show_figure, grid, order
):
    box, inputs = show_cost(show_figure, grid, order), 512 * 128
    values = torch.empty(512, 128 * (grid + order), device="meta")
    m = meter(F.linear, values, torch.empty(128, 128 * (grid + order), device="meta"))
    assert number(box, "bytes product") == pytest.approx(m.moved / inputs, rel=1e-12)
    assert number(box, "flops product") == m.operations / inputs


def heights(box, part: str) -> list[float]:
    """The heights of the bars of what is read or written, in pixels."""
    path = box.locator(f"path.area.solid.{part}").get_attribute("d")
    bars = re.findall(r"M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)", path)
    return [float(low) - float(high) for low, high in bars]


@pytest.mark.parametrize("part, colour", [("read", "blue"), ("written", "orange")])
def test_the_bars_are_as_high_as_what_each_kernel_moves(show_figure, part, colour):
    box = show_cost(show_figure, 5, 3)
    bytes_ = torch.tensor([getattr(kernel, part) for kernel in metered_basis(5, 3).kernels])
    shown = torch.tensor(heights(box, colour))
    expected = bytes_ / bytes_.sum() * shown.sum()
    # paths are written to a tenth of a pixel
    assert len(shown) == len(bytes_)
    assert (shown - expected).abs().max() < 0.25


def test_the_chapters_numbers_are_on_the_figure_at_first(show_figure):
    box = show_figure(katlib.SplineCostExplorer())
    assert round(number(box, "bytes basis")) == 1762
    assert number(box, "bytes one pass") == 36
    assert number(box, "flops basis") == 189
    assert number(box, "share flops") == pytest.approx(189 / (189 + 2048))


@pytest.fixture
def cost(show_figure):
    return show_figure(katlib.SplineCostExplorer())


def test_dragging_the_grid_changes_the_grid_alone(cost):
    drag(knob(cost, "grid"), 150, 0)
    assert number(cost, "grid") in (9, 10)
    assert number(cost, "order") == 3


def test_dragging_the_order_down_takes_passes_away(cost):
    drag(knob(cost, "order"), 0, 30)
    assert number(cost, "order") < 3
    assert number(cost, "passes basis") == 4 + 9 * number(cost, "order")


def test_keys_change_grid_and_order_and_r_resets(cost):
    press(knob(cost, "grid"), "ArrowRight", "ArrowRight")
    press(knob(cost, "order"), "ArrowDown")
    assert (number(cost, "grid"), number(cost, "order")) == (7, 2)
    press(knob(cost, "order"), "r")
    assert (number(cost, "grid"), number(cost, "order")) == (5, 3)


def test_grid_and_order_stay_in_their_range(cost):
    press(knob(cost, "grid"), *["ArrowLeft"] * 8)
    press(knob(cost, "order"), *["ArrowUp"] * 4)
    assert (number(cost, "grid"), number(cost, "order")) == (1, 4)


# ---- ConversionExplorer


def show_conversion(show_figure, degrees=(5, 4), reach=3, spread=1.0):
    return show_figure(katlib.ConversionExplorer(degrees, reach, spread))


def stored_fit(degrees, reach) -> list[torch.Tensor]:
    """Numerator and denominator that the figure uses."""
    fits = katlib.ConversionExplorer().fits[f"{degrees[0]},{degrees[1]}"]
    return [torch.tensor(c, dtype=torch.float64) for c in fits[reach - 2]]


def function_of(a: torch.Tensor, b: torch.Tensor):
    return lambda z: katlib.rational(z[..., None], a[None], b[None])[..., 0]


@pytest.mark.parametrize("degrees, reach", [((5, 4), 3), ((3, 2), 8), ((7, 6), 2), ((7, 6), 6)])
def test_the_shown_error_is_that_of_katlibs_fit(show_figure, degrees, reach):
    box = show_conversion(show_figure, degrees, reach)
    fit = katlib.fit_rational("gelu", degrees, (-reach, reach))
    error = number(box, "error")
    assert error == pytest.approx(fit.max_error, abs=1e-6)
    assert error == pytest.approx(max_error(fit, "gelu", (-reach, reach)), rel=1e-3)


def two_mlps(degrees, reach) -> tuple[nn.Module, nn.Module]:
    """A GELU MLP and katlib's GR-KAN with the same matrices, as the figure has them."""
    weights = katlib.ConversionExplorer().mlp
    mlp = nn.Sequential(nn.Linear(4, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))
    kat = katlib.GRKANMlp(4, 16, groups=1, init=("identity", "gelu"), degrees=degrees)
    a, b = stored_fit(degrees, reach)
    mlp.double()
    kat.double()
    with torch.no_grad():
        for layer in (mlp[0], kat.fc1):
            layer.weight.copy_(torch.tensor(weights["fc1"]))
        for layer in (mlp[2], kat.fc2):
            layer.weight.copy_(torch.tensor(weights["fc2"]))
        for parameter, values in (
            (kat.fc1.bias, torch.zeros(16)),
            (kat.fc2.bias, torch.zeros(4)),
            (kat.act2.weight_numerator, a[None]),
            (kat.act2.weight_denominator, b[None]),
        ):
            parameter.copy_(values)
    return mlp, kat


@torch.no_grad()
def changes(degrees, reach, spread) -> tuple[float, float]:
    """The relative change of the output, and the share of hidden inputs outside the interval."""
    mlp, kat = two_mlps(degrees, reach)
    inputs = torch.tensor(katlib.ConversionExplorer().mlp["inputs"], dtype=torch.float64)
    x = spread * inputs / mlp[0](inputs).square().mean().sqrt()
    before, after = mlp(x), kat(x)
    change = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
    return change.item(), (mlp[0](x).abs() > reach).double().mean().item()


@pytest.mark.parametrize(
    "degrees, reach, spread", [((5, 4), 3, 1.0), ((3, 2), 2, 4.0), ((7, 6), 8, 2.5)]
)
def test_the_output_changes_as_that_of_katlibs_mlp(show_figure, degrees, reach, spread):
    box = show_conversion(show_figure, degrees, reach, spread)
    change, outside = changes(degrees, reach, spread)
    assert number(box, "change") == pytest.approx(change, rel=1e-6)
    assert number(box, "outside") == pytest.approx(outside, abs=1e-12)


@pytest.fixture
def conversion(show_figure):
    return show_conversion(show_figure)


def test_inputs_beyond_the_interval_change_the_output_more(conversion):
    before = number(conversion, "change")
    drag(knob(conversion, "spread"), 80, 0)
    assert number(conversion, "outside") > 0.1
    assert number(conversion, "change") > 2 * before


def test_the_interval_follows_the_mouse_and_the_keys(conversion):
    drag(knob(conversion, "interval"), 100, 0)
    reach = float(knob(conversion, "interval").get_attribute("aria-valuenow"))
    assert reach in (5, 6)
    press(knob(conversion, "interval"), "ArrowRight")
    assert knob(conversion, "interval").get_attribute("aria-valuetext") == (
        f"fitted on −{reach + 1:.0f} to {reach + 1:.0f}"
    )


def test_higher_degrees_fit_better_and_r_resets(conversion):
    before = number(conversion, "error")
    conversion.locator('button[data-degrees="7,6"]').click()
    assert number(conversion, "error") < before / 5
    press(knob(conversion, "spread"), "r")
    assert number(conversion, "error") == before


# ---- all of them

FIGURES = [
    katlib.GroupExplorer,
    katlib.SummationExplorer,
    katlib.SplineCostExplorer,
    katlib.ConversionExplorer,
]
each_figure = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)


@each_figure
def test_a_phone_shows_the_whole_figure(show_figure, figure):
    box = show_figure(figure(), **PHONE)
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390


@each_figure
def test_a_figure_is_dark_on_a_dark_page(show_figure, figure):
    box = show_figure(figure(), theme="dark")
    background = box.evaluate("node => getComputedStyle(node).backgroundColor")
    assert background == "rgb(24, 27, 32)"


NAMELESS = """box => [...box.querySelectorAll('[role="slider"], button, select, input')].filter(
    (node) => !node.getAttribute('aria-label') && !node.labels?.length && !node.textContent.trim()
).map((node) => node.outerHTML)"""


@each_figure
def test_everything_that_can_be_moved_has_a_name(show_figure, figure):
    assert not show_figure(figure()).evaluate(NAMELESS)


@each_figure
def test_every_handle_says_its_value_and_its_range(show_figure, figure):
    handles = show_figure(figure()).locator(".knob")
    for i in range(handles.count()):
        low, now, high = (
            float(handles.nth(i).get_attribute(f"aria-value{key}")) for key in ("min", "now", "max")
        )
        assert low <= now <= high
        assert handles.nth(i).get_attribute("aria-valuetext")


@each_figure
def test_a_figure_can_be_reached_by_the_tab_key(show_figure, figure):
    box = show_figure(figure())
    assert box.evaluate("box => [...box.querySelectorAll('.knob')].every((k) => k.tabIndex === 0)")


DAMAGES = [
    (katlib.GroupExplorer, "functions", [0, 1]),
    (katlib.GroupExplorer, "functions", [0, 1, 2, 3, 4, 5, 6, 8]),
    (katlib.GroupExplorer, "sharing", "nobody"),
    (katlib.GroupExplorer, "shared_numerator", None),
    (katlib.GroupExplorer, "layer", [192]),
    (katlib.SummationExplorer, "order", "backwards"),
    (katlib.SummationExplorer, "format", "float8"),
    (katlib.SummationExplorer, "terms", "toString"),
    (katlib.SummationExplorer, "steps", 21),
    (katlib.SplineCostExplorer, "grid", 0),
    (katlib.SplineCostExplorer, "order", 1.5),
    (katlib.ConversionExplorer, "degrees", [9, 9]),
    (katlib.ConversionExplorer, "reach", 9),
    (katlib.ConversionExplorer, "spread", None),
    (katlib.ConversionExplorer, "mlp", {"inputs": [[1]], "fc1": [[1, 2]], "fc2": [[1]]}),
    (katlib.ConversionExplorer, "fits", {"5,4": []}),
]


class Damaged:
    """A figure whose stored state has a wrong entry."""

    def __init__(self, figure, key, value):
        self.figure, self.key, self.value = figure, key, value

    def get_state(self):
        return self.figure.get_state() | {self.key: self.value}


@pytest.mark.parametrize("figure, key, value", DAMAGES, ids=str)
def test_a_figure_whose_state_is_damaged_says_so(show_figure, figure, key, value):
    said = show_figure(Damaged(figure(), key, value)).text_content()
    assert f"what is stored of it is damaged ({key})" in said
