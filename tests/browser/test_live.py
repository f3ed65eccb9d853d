"""The live figures of the built book: dragging, keys and fields change them.

Their numbers are katlib's.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import collect_errors

import katlib
from katlib.book.recorder import coefficients as recorded_coefficients
from katlib.book.recorder import density, load_record
from katlib.fit import max_error
from katlib.rational import RELEASED_GELU
from katlib.spline import bspline_basis
from notebooks import WIDGET_STATE, WIDGET_VIEW

pytestmark = pytest.mark.book

ROOT = Path(__file__).resolve().parents[2]
RATIONAL = "book/intro.html"
SPLINE = "notebooks/02_kan_from_scratch.html"
DENOMINATOR = "notebooks/05_safe_denominators.html"
TRAINED = "notebooks/14_inside.html"
FIGURES = "notebooks/11_kat_block.html"

PHONE = dict(width=390, height=844, has_touch=True, is_mobile=True)
IDENTITY = [0, 1, 0, 0, 0, 0]


# ---- what a reader sees and does


def figure(page):
    """The first live figure of the page, mounted."""
    box = page.locator(".katlib-live").first
    box.wait_for()
    page.wait_for_timeout(100)
    return box


def number(box, key: str) -> float:
    # the figure draws once a frame
    box.page.wait_for_timeout(60)
    value = box.locator(f'output[data-key="{key}"]').first.get_attribute("data-value")
    return float(value.replace("Infinity", "inf"))


def knob(box, name: str):
    return box.locator(f'.knob[data-name="{name}"]')


def coefficients(box, letter: str) -> torch.Tensor:
    """The coefficients a or b of a figure, from its fields."""
    box.page.wait_for_timeout(60)
    labels = box.locator("label.field").filter(has_text=re.compile(rf"^{letter}\d$"))
    fields = labels.locator("input")
    exact = fields.evaluate_all("fields => fields.map((field) => Number(field.dataset.value))")
    shown = fields.evaluate_all("fields => fields.map((field) => Number(field.value))")
    # to the digits that the field has room for
    assert shown == pytest.approx(exact, abs=1e-7)
    return torch.tensor(exact, dtype=torch.float64)


def set_coefficient(box, name: str, value: str) -> None:
    box.get_by_label(name, exact=True).last.fill(value)


def curve(box, style: str) -> str:
    return box.locator(f"path.curve.{style}").first.get_attribute("d")


def centre_of_dot(handle) -> tuple[float, float]:
    handle.scroll_into_view_if_needed()
    circle = handle.locator(".dot").bounding_box()
    return circle["x"] + circle["width"] / 2, circle["y"] + circle["height"] / 2


def drag(page, handle, dx: float, dy: float) -> None:
    x, y = centre_of_dot(handle)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def drag_by_finger(page, handle, dx: float, dy: float) -> None:
    """As `drag`, on a touch screen."""
    x, y = centre_of_dot(handle)
    screen = page.context.new_cdp_session(page)
    for event, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + dx, "y": y + dy}]),
        ("touchEnd", []),
    ):
        screen.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": points})


def one_function(a: torch.Tensor, b: torch.Tensor):
    """F of z, of any shape, for the coefficients of one function."""

    def function(z: torch.Tensor) -> torch.Tensor:
        return katlib.rational(z[..., None], a[None], b[None])[..., 0]

    return function


def value_and_slope(function, x: float) -> tuple[float, float]:
    point = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value = function(point)
    (slope,) = torch.autograd.grad(value.sum(), point)
    return value.item(), slope.item()


# ---- RationalExplorer


def assert_agrees(box) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of a RationalExplorer are katlib's, to 1e-6; returns its coefficients."""
    a, b, x = coefficients(box, "a"), coefficients(box, "b"), number(box, "x")
    function = one_function(a, b)
    target = box.locator("select").input_value()
    value, slope = value_and_slope(function, x)
    numerator = sum(c * x**i for i, c in enumerate(a.tolist()))
    denominator = 1 + sum(abs(c) * abs(x) ** j for j, c in enumerate(b.tolist(), start=1))
    expected = {
        "F": value,
        "dF": slope,
        "P": numerator,
        "Q": denominator,
        "error": max_error(function, target),
        "gain": katlib.gain(function),
    }
    for key, exact in expected.items():
        assert number(box, key) == pytest.approx(exact, abs=1e-6), key
    return a, b


@pytest.fixture
def explorer(show_figure):
    return show_figure(katlib.RationalExplorer("identity", target="gelu"), width=1200)


def test_the_figure_starts_from_the_identity(explorer):
    a, b = assert_agrees(explorer)
    assert a.tolist() == IDENTITY
    assert b.tolist() == [0, 0, 0, 0]


def test_dragging_a_numerator_coefficient_changes_the_curve(explorer):
    before = curve(explorer, "blue")
    drag(explorer.page, knob(explorer, "a2"), 0, -40)
    a, _ = assert_agrees(explorer)
    assert a[2] > 0.5
    assert curve(explorer, "blue") != before


def test_dragging_a_denominator_coefficient_changes_q(explorer):
    drag(explorer.page, knob(explorer, "b2"), 0, -30)
    _, b = assert_agrees(explorer)
    assert b[1] > 0.1
    assert number(explorer, "Q") > 1.1


def test_dragging_x_shows_the_numbers_of_another_place(explorer):
    drag(explorer.page, knob(explorer, "a2"), 0, -40)
    drag(explorer.page, knob(explorer, "b2"), 0, -30)
    drag(explorer.page, knob(explorer, "x"), -300, 0)
    assert_agrees(explorer)
    assert number(explorer, "x") < 0


@pytest.mark.parametrize("name", ["relu", "gelu", "swish", "tanh"])
def test_every_preset_shows_what_katlib_knows_of_it(explorer, name):
    explorer.locator(f'button[data-preset="{name}"]').click()
    explorer.locator("select").select_option(name)
    assert_agrees(explorer)
    assert number(explorer, "score") > 99


def test_the_released_gelu_shows_its_error(explorer):
    explorer.locator('button[data-preset^="released"]').click()
    explorer.locator("select").select_option("gelu")
    a, b = assert_agrees(explorer)
    assert a.tolist() == list(RELEASED_GELU[0])
    assert b.tolist() == list(RELEASED_GELU[1])
    assert number(explorer, "error") == pytest.approx(1.465, abs=1e-3)


def press_up(box, name: str, times: int) -> None:
    knob(box, name).focus()
    for _ in range(times):
        box.page.keyboard.press("ArrowUp")


def test_keys_move_a_coefficient(explorer):
    press_up(explorer, "a0", times=3)
    a, _ = assert_agrees(explorer)
    assert a[0] == pytest.approx(0.03, abs=1e-9)
    assert knob(explorer, "a0").get_attribute("aria-valuetext") == "a0 = 0.03"


def test_a_field_sets_a_coefficient_whose_absolute_value_counts(explorer):
    set_coefficient(explorer, "b3", "-0.25")
    _, b = assert_agrees(explorer)
    assert b[2] == -0.25
    assert number(explorer, "Q") > 1.8


def test_the_key_r_resets_all_coefficients(explorer):
    press_up(explorer, "a0", times=3)
    set_coefficient(explorer, "b3", "-0.25")
    knob(explorer, "a0").focus()
    explorer.page.keyboard.press("r")
    a, b = assert_agrees(explorer)
    assert a.tolist() == IDENTITY
    assert not b.any()


def stated_solutions() -> list[tuple[str, str]]:
    """The coefficients and the scores that the page states for its first exercise."""
    text = (ROOT / "book" / "intro.md").read_text()
    return re.findall(r"[Ww]ith\s+((?:\$[ab]_\d = [\d.]+\$,? ?)+)[^$]* (?:is|it is) (\d+)\.", text)


def test_the_first_exercise_has_two_solutions():
    assert len(stated_solutions()) == 2


def test_the_solutions_of_the_first_exercise_have_the_scores_that_the_page_says(explorer):
    for solution, score in stated_solutions():
        for letter, index, value in re.findall(r"([ab])_(\d) = ([\d.]+)", solution):
            set_coefficient(explorer, f"{letter}{index}", value)
        assert_agrees(explorer)
        assert round(number(explorer, "score")) == int(score)


def test_without_absolute_values_a_pole_is_found(explorer):
    explorer.get_by_label("absolute values in Q").uncheck()
    set_coefficient(explorer, "b2", "-0.4")
    assert number(explorer, "poles") == 2
    assert "1.58" in explorer.locator('output[data-key="poles"]').text_content()
    assert number(explorer, "error") == float("inf")


def test_with_absolute_values_again_the_pole_is_gone(explorer):
    explorer.get_by_label("absolute values in Q").uncheck()
    set_coefficient(explorer, "b2", "-0.4")
    explorer.get_by_label("absolute values in Q").check()
    assert_agrees(explorer)


def test_the_copied_python_computes_the_shown_values(explorer):
    explorer.locator('button[data-preset="swish"]').click()
    explorer.get_by_text("copy as Python").click()
    x = number(explorer, "x")
    code = explorer.locator("pre").text_content()
    names = {}
    exec(code.replace("y =", f"x = torch.tensor([{x!r}])\ny ="), names)
    assert names["y"].item() == pytest.approx(number(explorer, "F"), abs=1e-6)


def test_a_phone_shows_the_whole_figure(open_page):
    page = open_page(RATIONAL, **PHONE)
    figure(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finger_drags_without_scrolling_the_page(open_page):
    page = open_page(RATIONAL, **PHONE)
    box = figure(page)
    handle = knob(box, "a2")
    assert handle.evaluate("node => getComputedStyle(node).touchAction") == "none"
    before = coefficients(box, "a")
    drag_by_finger(page, handle, 0, 20)
    a, _ = assert_agrees(box)
    assert a[2] < before[2] - 0.2


def colours(box, theme: str) -> list[str]:
    """The background and the text of the figure on a light or dark page."""
    box.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    return box.evaluate(
        "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).color]"
    )


def test_the_figure_is_light_on_a_light_page(explorer):
    assert colours(explorer, "light")[0] == "rgb(255, 255, 255)"


def test_the_figure_is_dark_on_a_dark_page(explorer):
    # as a reader switches it, from light to dark
    colours(explorer, "light")
    assert colours(explorer, "dark") == ["rgb(24, 27, 32)", "rgb(234, 234, 234)"]


# ---- DenominatorExplorer


def denominators(b: list[float], x: float) -> dict[str, float]:
    """Q(x) in each of its four versions."""
    powers = [x**j for j in range(1, len(b) + 1)]
    terms = [c * power for c, power in zip(b, powers)]
    return {
        "A": 1 + sum(map(abs, terms)),
        "B": 1 + abs(sum(terms)),
        "plain": 1 + sum(terms),
        "signed": 1 + sum(abs(c) * power for c, power in zip(b, powers)),
    }


def assert_four_denominators_agree(box) -> None:
    b, x = coefficients(box, "b"), number(box, "x")
    numerator = sum(c * x**i for i, c in enumerate(RELEASED_GELU[0]))
    for version, denominator in denominators(b.tolist(), x).items():
        assert number(box, f"F {version}") == pytest.approx(numerator / denominator, abs=1e-6)
    function = one_function(torch.tensor(RELEASED_GELU[0], dtype=torch.float64), b)
    assert number(box, "error A") == pytest.approx(max_error(function, "gelu"), abs=1e-6)


def test_the_four_denominators_are_those_of_their_formulas(open_page):
    page = open_page(DENOMINATOR)
    box = figure(page)
    assert_four_denominators_agree(box)
    drag(page, knob(box, "b2"), 0, -25)
    assert_four_denominators_agree(box)
    set_coefficient(box, "b1", "-2")
    assert_four_denominators_agree(box)


def test_only_the_safe_denominator_has_no_poles(open_page):
    page = open_page(DENOMINATOR)
    box = figure(page)
    drag(page, knob(box, "b2"), 0, -25)
    set_coefficient(box, "b1", "-2")
    assert number(box, "poles plain") >= 1
    assert number(box, "poles signed") >= 1
    assert number(box, "least A") == pytest.approx(1)


# ---- SplineExplorer


@pytest.fixture
def spline(open_page):
    return figure(open_page(SPLINE))


def assert_spline_agrees(box) -> float:
    """The shown value is that of katlib's basis functions; returns it."""
    box.page.wait_for_timeout(60)
    handles = box.locator(".knob").filter(has_text=re.compile(r"^c\d+$"))
    shown = [handles.nth(i).get_attribute("aria-valuenow") for i in range(handles.count())]
    c = torch.tensor([float(value) for value in shown], dtype=torch.float64)
    order = int(box.locator('button[aria-pressed="true"]').text_content())
    grid = len(c) - order
    x = torch.tensor(number(box, "x"), dtype=torch.float64)
    knots = torch.arange(-order, grid + order + 1, dtype=torch.float64) * (2 / grid) - 1
    value = number(box, "value")
    assert value == pytest.approx((bspline_basis(x, knots, order) @ c).item(), abs=1e-6)
    return value


def test_four_cubic_basis_functions_reach_x_and_sum_to_one(spline):
    assert_spline_agrees(spline)
    assert number(spline, "sum") == pytest.approx(1)
    assert number(spline, "nonzero") == 4


def test_a_spline_coefficient_far_from_x_changes_nothing_there(spline):
    before = number(spline, "value")
    drag(spline.page, knob(spline, "c1"), 0, -40)
    assert number(spline, "value") == before


def test_a_spline_coefficient_close_to_x_changes_the_value(spline):
    before = number(spline, "value")
    drag(spline.page, knob(spline, "c5"), 0, 40)
    assert assert_spline_agrees(spline) != before


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_spline_can_have_a_lower_order(spline, order):
    drag(spline.page, knob(spline, "c5"), 0, 40)
    spline.locator(f'button[data-order="{order}"]').click()
    assert_spline_agrees(spline)
    assert number(spline, "nonzero") <= order + 1
    assert number(spline, "sum") == pytest.approx(1)


def test_a_spline_can_have_a_finer_grid(spline):
    spline.locator('button[data-order="2"]').click()
    spline.get_by_label("grid").first.fill("9")
    assert_spline_agrees(spline)
    assert number(spline, "count") == 11


# ---- the drawings of a chapter


def test_captions_read_on_a_dark_page(open_page):
    page = open_page(FIGURES, color_scheme="dark")
    shown = page.locator("figure.katlib-figure").first.evaluate(
        """figure => {
            const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
            const style = node => getComputedStyle(node);
            return {
                panel: style(figure.closest(".output")).backgroundColor,
                page: numbers(style(document.body).backgroundColor),
                caption: numbers(style(figure.querySelector("figcaption")).color),
            };
        }"""
    )
    # light on dark, without a pale panel
    assert shown["panel"] == "rgba(0, 0, 0, 0)"
    assert min(shown["caption"][:3]) - max(shown["page"][:3]) > 100


def test_on_a_phone_a_drawing_scrolls_in_its_own_box_and_the_page_does_not(open_page):
    page = open_page(FIGURES, width=390)
    page_width = page.evaluate("document.documentElement.scrollWidth")
    drawing = page.locator("figure.katlib-figure img").first
    drawing_width = drawing.evaluate("image => image.getBoundingClientRect().width")
    assert page_width <= 390 < drawing_width


def test_the_keyboard_scrolls_a_drawing_on_a_phone(open_page):
    page = open_page(FIGURES, **PHONE)
    drawing = page.locator("figure.katlib-figure[data-scrolls]").first
    drawing.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(400)
    assert drawing.evaluate("figure => figure.scrollLeft") > 0


def test_a_phone_says_that_a_drawing_scrolls(open_page):
    page = open_page(FIGURES, **PHONE)
    caption = page.locator("figure.katlib-figure[data-scrolls] figcaption").first
    said = caption.evaluate("node => getComputedStyle(node, '::after').content")
    assert "The drawing scrolls sideways." in said


# ---- what is stored of a figure is damaged


VIEW_OF_A = f'<script type="{WIDGET_VIEW}">{{"model_id": "a"}}</script>'


@pytest.fixture
def show(browser):
    """A function that opens a page of one figure, given the text of its states."""
    opened = []
    faults = []

    def show_(states: str):
        page = browser.new_page()
        opened.append(page)
        collect_errors(page, faults)
        script = (ROOT / "book" / "_static" / "live.js").read_text()
        stored = f'<script type="{WIDGET_STATE}">{states}</script>'
        page.set_content(f"<main>{stored}{VIEW_OF_A}</main><script>{script}</script>")
        page.wait_for_selector("div[data-live]", state="attached")
        page.wait_for_timeout(150)
        return page.locator("div[data-live]")

    yield show_
    for page in opened:
        page.close()
    assert not faults


def states_of(widget, **changes) -> str:
    """The states of a page with one figure; `changes` of its state, None for what is left out."""
    state = {key: value for key, value in widget.get_state().items() if key != "layout"}
    for key, value in changes.items():
        state[key] = value
        if value is None:
            del state[key]
    return json.dumps({"state": {"a": {"state": state}}}).replace("</", "<\\/")


def test_a_figure_is_drawn_from_the_state_that_it_stores(show):
    for make in (katlib.RationalExplorer, katlib.DenominatorExplorer, katlib.SplineExplorer):
        assert show(states_of(make())).locator("svg").count() >= 2


def test_a_figure_is_drawn_from_a_state_in_colabs_form(show):
    models = json.loads(states_of(katlib.RationalExplorer()))["state"]
    assert show(json.dumps(models).replace("</", "<\\/")).locator("svg").count() == 2


@pytest.mark.parametrize(
    "states",
    [
        "",
        "{",
        "null",
        "{}",
        '{"state": {}}',
        '{"state": {"a": {}}}',
        '{"a": {"state": {"x": NaN}}}',
    ],
)
def test_a_figure_whose_state_is_missing_says_so(show, states):
    said = show(states).text_content()
    assert said == (
        "There is a live figure here whose state is not stored. "
        "Its notebook draws it when it is run."
    )


DAMAGES = [
    (katlib.RationalExplorer, {"numerator": []}),
    (katlib.RationalExplorer, {"numerator": [None, 1]}),
    (katlib.RationalExplorer, {"denominator": "abcd"}),
    (katlib.RationalExplorer, {"denominator": None}),
    (katlib.RationalExplorer, {"target": "selu"}),
    (katlib.RationalExplorer, {"interval": [3]}),
    (katlib.RationalExplorer, {"presets": [["a", 1, 2]]}),
    (katlib.RationalExplorer, {"quadrature": [[1, 2], [1]]}),
    (katlib.RationalExplorer, {"best": {}}),
    (katlib.DenominatorExplorer, {"numerator": [[1]]}),
    (katlib.DenominatorExplorer, {"presets": None}),
    (katlib.SplineExplorer, {"coefficients": [1, 2]}),
    (katlib.SplineExplorer, {"grid": 1000000}),
    (katlib.SplineExplorer, {"order": 1.5}),
    (katlib.SplineExplorer, {"interval": [1, 1]}),
]


@pytest.mark.parametrize(
    "make, damage", DAMAGES, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_figure_whose_state_is_damaged_says_so(show, make, damage):
    said = show(states_of(make(), **damage)).text_content()
    assert "This live figure cannot be drawn, because what is stored of it is damaged" in said
    assert next(iter(damage)) in said


def damaged_record(record, damage: str) -> str:
    record = json.loads(json.dumps(record))
    if damage == "not JSON":
        return "{"
    if damage == "no epochs":
        record["epochs"] = []
    elif damage == "no functions":
        record["functions"] = {}
    elif damage == "a short history":
        next(iter(record["functions"].values()))["counts"].pop()
    return json.dumps(record)


@pytest.mark.parametrize("damage", ["not JSON", "no epochs", "no functions", "a short history"])
def test_a_trained_kat_whose_record_is_damaged_says_so(show, record, damage):
    states = states_of(katlib.TrainedExplorer(record), record=damaged_record(record, damage))
    assert "cannot be drawn" in show(states).text_content()


def test_a_trained_kat_without_the_place_that_it_shows_says_so(show, record):
    states = states_of(katlib.TrainedExplorer(record), block=77)
    assert "cannot be drawn" in show(states).text_content()


def test_a_trained_kat_whose_inputs_are_all_outside_is_drawn(show, record):
    outside = json.loads(json.dumps(record))
    for history in outside["functions"].values():
        for counts in (group for epoch in history["counts"] for group in epoch):
            counts[:] = [record["unit"], *[0] * record["bins"], 0]
    assert show(states_of(katlib.TrainedExplorer(outside))).locator("svg").count() >= 3


# ---- other numbers of coefficients


@pytest.mark.parametrize("m, n", [(0, 0), (0, 1), (1, 0), (2, 1), (3, 5), (8, 7), (12, 11)])
def test_every_handle_of_every_degree_is_within_its_plot(show, m, n):
    explorer = katlib.RationalExplorer(([0.0, 1.0, *[0.0] * m][: m + 1], [0.0] * n))
    box = show(states_of(explorer))
    outside = box.evaluate("""box => [...box.querySelectorAll('.knob .dot')].filter((dot) => {
        const here = dot.getBoundingClientRect(), plot = dot.closest('svg').getBoundingClientRect();
        return here.left < plot.left || here.right > plot.right;
    }).map((dot) => dot.parentElement.dataset.name)""")
    assert not outside
    assert box.locator(".knob").count() == m + 1 + n + 1


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_coefficients_of_any_size_are_drawn(show, size):
    box = show(states_of(katlib.DenominatorExplorer([size] * 6, [size] * 4)))
    assert box.locator("svg").count() == 2


# ---- TrainedExplorer


@pytest.fixture(scope="module")
def record():
    """The record that chapter 14's figure shows."""
    path = ROOT / "results" / "inside-kat-cifar10.json"
    if not path.exists():
        pytest.skip("no record of a trained KAT in results/")
    return load_record(path)


@pytest.fixture
def trained(open_page, record):
    return figure(open_page(TRAINED))


def chosen(box) -> tuple[str, int, int]:
    """Name, group and place of the epoch that the figure shows."""
    block, function, group = (
        box.get_by_label(key, exact=True).first.input_value()
        for key in ("block", "function", "group")
    )
    epoch = int(float(knob(box, "epoch").get_attribute("aria-valuenow")))
    return f"blocks.{block}.mlp.{function}", int(group), epoch


def falling_share(function, middles: torch.Tensor, shares: torch.Tensor) -> float:
    """The share of the inputs inside the interval at which the function falls."""
    middles = middles.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(middles).sum(), middles)
    return ((slopes < 0) * shares).sum().item() / shares.sum().item()


def expected_numbers(record, name: str, group: int, epoch: int, x: float) -> dict[str, float]:
    """What a TrainedExplorer shows, by katlib and by the record."""
    history = record["functions"][name]
    function = one_function(*recorded_coefficients(record, name, group, epoch))
    start = one_function(*recorded_coefficients(record, name, group, 0))
    middles, shares = density(record, name, group, epoch)
    value, slope = value_and_slope(function, x)
    start_value, _ = value_and_slope(start, x)
    return {
        "F": value,
        "start": start_value,
        "dF": slope,
        "epoch": record["epochs"][epoch]["epoch"],
        "assumed": 1 / katlib.gain(start),
        "moved": history["moved"][epoch][group],
        "mean": history["mean"][epoch][group],
        "std": history["std"][epoch][group],
        "inside": history["inside"][epoch][group],
        "second": history["second_moment"][epoch][group],
        "outside": 1 - shares.sum().item(),
        "falling": falling_share(function, middles, shares),
    }


def assert_agrees_with(box, record) -> tuple[str, int, int]:
    """The numbers of the figure are katlib's and the record's, to 1e-6; returns what it shows."""
    box.evaluate(
        "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    )
    name, group, epoch = chosen(box)
    for key, value in expected_numbers(record, name, group, epoch, number(box, "x")).items():
        assert number(box, key) == pytest.approx(value, abs=1e-6), key
    return name, group, epoch


def last_place(record) -> int:
    return len(record["epochs"]) - 1


def moved_at_the_end(record) -> dict[tuple[str, int], float]:
    return {
        (name, group): distance
        for name, history in record["functions"].items()
        for group, distance in enumerate(history["moved"][-1])
    }


def test_the_trained_kat_opens_where_most_has_moved(trained, record):
    name, group, epoch = assert_agrees_with(trained, record)
    moved = moved_at_the_end(record)
    assert (name, group) == max(moved, key=moved.get)
    assert epoch == last_place(record)


def test_the_trained_kat_has_a_tile_for_each_function_and_one_is_chosen(trained, record):
    assert trained.locator(".tile").count() == len(moved_at_the_end(record))
    assert trained.locator('.tile[aria-checked="true"]').count() == 1


def test_dragging_x_shows_the_trained_kat_at_another_place(trained, record):
    drag(trained.page, knob(trained, "x"), -160, 0)
    assert number(trained, "x") < 0
    assert_agrees_with(trained, record)


def epoch_shown(box, record) -> int:
    _, _, epoch = assert_agrees_with(box, record)
    return epoch


def test_the_epoch_follows_the_handle(trained, record):
    before = curve(trained, "blue")
    drag(trained.page, knob(trained, "epoch"), -300, 0)
    assert 0 < epoch_shown(trained, record) < last_place(record)
    assert curve(trained, "blue") != before


def test_the_epoch_follows_the_keys(trained, record):
    drag(trained.page, knob(trained, "epoch"), -300, 0)
    dragged = epoch_shown(trained, record)
    trained.page.keyboard.press("ArrowLeft")
    assert epoch_shown(trained, record) == dragged - 1


def go_to_the_start(box, record) -> None:
    knob(box, "epoch").focus()
    for _ in range(last_place(record) + 1):
        box.page.keyboard.press("ArrowLeft")


def test_at_the_start_nothing_has_moved(trained, record):
    go_to_the_start(trained, record)
    assert epoch_shown(trained, record) == 0
    assert number(trained, "moved") == 0
    assert number(trained, "F") == number(trained, "start")


def test_the_key_r_resets_the_epoch(trained, record):
    go_to_the_start(trained, record)
    trained.page.keyboard.press("r")
    assert epoch_shown(trained, record) == last_place(record)


def choose_tile(box, place: str) -> None:
    box.locator(f'.tile[data-place="{place}"]').click()


def test_a_tile_chooses_its_function(trained, record):
    choose_tile(trained, "0 act2 3")
    assert assert_agrees_with(trained, record)[:2] == ("blocks.0.mlp.act2", 3)


def test_arrow_keys_go_from_tile_to_tile(trained, record):
    choose_tile(trained, "0 act2 3")
    trained.page.keyboard.press("ArrowRight")
    trained.page.keyboard.press("ArrowDown")
    assert assert_agrees_with(trained, record)[:2] == ("blocks.1.mlp.act1", 4)
    assert trained.locator(".tile:focus").get_attribute("data-place") == "1 act1 4"


def test_menus_choose_a_function_and_its_tile(trained, record):
    choose_tile(trained, "1 act1 4")
    trained.get_by_label("group", exact=True).first.select_option("7")
    trained.get_by_label("function", exact=True).first.select_option("act2")
    assert assert_agrees_with(trained, record)[:2] == ("blocks.1.mlp.act2", 7)
    checked = trained.locator('.tile[aria-checked="true"]')
    assert checked.get_attribute("data-place") == "1 act2 7"


# ---- its film


@pytest.fixture(params=["no-preference", "reduce"])
def motion(request) -> str:
    return request.param


@pytest.fixture
def film(open_page, record, motion):
    box = figure(open_page(TRAINED, reduced_motion=motion))
    box.page.wait_for_timeout(400)
    return box


def wait_for_button(box, text: str) -> None:
    box.locator(".play", has_text=text).wait_for()


def places_of_the_film(box) -> list[float]:
    """Plays the film past the first epoch, stops it, and returns where it was."""
    handle = knob(box, "epoch")
    box.locator(".play").click()
    places = [0.0]
    while places[-1] < 1 and len(places) < 400:
        box.page.wait_for_timeout(20)
        places.append(float(handle.get_attribute("aria-valuenow")))
    box.locator(".play").click()
    wait_for_button(box, "play")
    return places


def test_the_film_does_not_start_by_itself(film, record):
    assert chosen(film)[2] == last_place(record)
    assert "play" in film.locator(".play").text_content()


def test_the_film_plays_forward_from_the_start(film, record):
    places = places_of_the_film(film)
    assert places == sorted(places)
    assert 1 <= places[-1] < last_place(record)


def test_the_film_glides_between_epochs_unless_motion_is_unwanted(film, motion):
    glides = any(place % 1 for place in places_of_the_film(film))
    assert glides == (motion == "no-preference")


def test_the_film_stops_at_a_whole_epoch_and_stays_there(film, record):
    places_of_the_film(film)
    stopped = epoch_shown(film, record)
    film.page.wait_for_timeout(700)
    assert epoch_shown(film, record) == stopped


def test_a_hand_on_the_handle_stops_the_film(film):
    places_of_the_film(film)
    knob(film, "epoch").focus()
    film.page.keyboard.press(" ")
    wait_for_button(film, "pause")
    film.page.keyboard.press("ArrowLeft")
    wait_for_button(film, "play")


# ---- on a phone


@pytest.fixture
def trained_on_a_phone(open_page, record):
    return figure(open_page(TRAINED, **PHONE))


def test_the_trained_kat_fits_a_phone(trained_on_a_phone):
    assert trained_on_a_phone.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finger_moves_the_epoch(trained_on_a_phone, record):
    drag_by_finger(trained_on_a_phone.page, knob(trained_on_a_phone, "epoch"), -120, 0)
    assert epoch_shown(trained_on_a_phone, record) < last_place(record) - 1


def test_a_tap_on_a_tile_chooses_its_function(trained_on_a_phone, record):
    tile = trained_on_a_phone.locator('.tile[data-place="0 act1 0"]')
    tile.scroll_into_view_if_needed()
    tile.tap()
    assert assert_agrees_with(trained_on_a_phone, record)[:2] == ("blocks.0.mlp.act1", 0)
