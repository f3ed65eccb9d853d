"""The live figures of the built book: dragging, keys and fields change them, and their numbers are katlib's."""

import re
from pathlib import Path

import pytest
import torch

import katlib
from katlib.book import recorder as inside
from katlib.fit import max_error
from katlib.rational import RELEASED_GELU
from katlib.spline import bspline_basis

ROOT = Path(__file__).resolve().parents[2]
RATIONAL, SPLINE, DENOMINATOR = (
    "book/intro.html",
    "notebooks/02_kan_from_scratch.html",
    "notebooks/05_safe_denominators.html",
)
TRAINED = "notebooks/14_inside.html"


def figure(page):
    """The first live figure of the page, mounted."""
    box = page.locator(".katlib-live").first
    box.wait_for()
    page.wait_for_timeout(100)
    return box


def number(box, key):
    box.page.wait_for_timeout(60)  # the figure draws once a frame
    return float(
        box.locator(f'output[data-key="{key}"]')
        .first.get_attribute("data-value")
        .replace("Infinity", "inf")
    )


def coefficients(box, letter):
    box.page.wait_for_timeout(60)
    fields = box.locator("label.field").filter(has_text=re.compile(rf"^{letter}\d$"))
    exact, shown = (
        [
            float(v)
            for v in fields.locator("input").evaluate_all(
                f"fields => fields.map((field) => {what})"
            )
        ]
        for what in ("field.dataset.value", "field.value")
    )
    assert shown == pytest.approx(exact, abs=1e-7)  # to the digits that the field has room for
    return torch.tensor(exact, dtype=torch.float64)


def drag(page, handle, dx, dy):
    handle.scroll_into_view_if_needed()
    circle = handle.locator(".dot").bounding_box()
    x, y = circle["x"] + circle["width"] / 2, circle["y"] + circle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def finger(page, handle, dx, dy):
    """As `drag`, on a touch screen."""
    handle.scroll_into_view_if_needed()
    circle = handle.locator(".dot").bounding_box()
    x, y = circle["x"] + circle["width"] / 2, circle["y"] + circle["height"] / 2
    touch = page.context.new_cdp_session(page)
    for kind, points in (
        ("Start", [{"x": x, "y": y}]),
        ("Move", [{"x": x + dx, "y": y + dy}]),
        ("End", []),
    ):
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def curve(box, style):
    return box.locator(f"path.curve.{style}").first.get_attribute("d")


def agrees(box):
    """The numbers of a RationalExplorer against katlib's, to 1e-6."""
    a, b, x = coefficients(box, "a"), coefficients(box, "b"), number(box, "x")
    X = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    F = katlib.rational(X, a[None], b[None])
    F.sum().backward()
    assert number(box, "F") == pytest.approx(F.item(), abs=1e-6)
    assert number(box, "dF") == pytest.approx(X.grad.item(), abs=1e-6)
    assert number(box, "P") == pytest.approx(
        sum(c * x**i for i, c in enumerate(a.tolist())), abs=1e-6
    )
    assert number(box, "Q") == pytest.approx(
        1 + sum(abs(c) * abs(x) ** (j + 1) for j, c in enumerate(b.tolist())), abs=1e-6
    )

    def function(z):
        return katlib.rational(z[..., None], a[None], b[None])[..., 0]

    target = box.locator("select").input_value()
    assert number(box, "error") == pytest.approx(max_error(function, target), abs=1e-6)
    assert number(box, "gain") == pytest.approx(katlib.gain(function), abs=1e-6)
    return a, b


def test_dragging_a_coefficient_changes_the_curve_and_the_numbers_are_those_of_katlib(open_page):
    page = open_page(RATIONAL)
    box = figure(page)
    a, b = agrees(box)
    assert a.tolist() == [0, 1, 0, 0, 0, 0] and b.tolist() == [
        0,
        0,
        0,
        0,
    ]  # the page starts from the identity
    before = curve(box, "blue")
    drag(page, box.locator('.knob[data-name="a2"]'), 0, -40)
    a, _ = agrees(box)
    assert a[2] > 0.5 and curve(box, "blue") != before
    drag(page, box.locator('.knob[data-name="b2"]'), 0, -30)
    _, b = agrees(box)
    assert b[1] > 0.1 and number(box, "Q") > 1.1
    drag(page, box.locator('.knob[data-name="x"]'), -150, 0)
    agrees(box)
    assert number(box, "x") < 0


def test_every_preset_shows_what_katlib_knows_of_it(open_page):
    box = figure(open_page(RATIONAL))
    for name in ("relu", "gelu", "swish", "tanh"):
        box.locator(f'button[data-preset="{name}"]').click()
        box.locator("select").select_option(name)
        agrees(box)
        assert number(box, "score") > 99
    box.locator('button[data-preset^="released"]').click()
    box.locator("select").select_option("gelu")
    a, b = agrees(box)
    assert a.tolist() == list(RELEASED_GELU[0]) and b.tolist() == list(RELEASED_GELU[1])
    assert number(box, "error") == pytest.approx(1.465, abs=1e-3)


def test_keys_and_fields_move_coefficients_and_reset_takes_them_back(open_page):
    page = open_page(RATIONAL)
    box = figure(page)
    handle = box.locator('.knob[data-name="a0"]')
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    a, _ = agrees(box)
    assert (
        a[0] == pytest.approx(0.03, abs=1e-9)
        and handle.get_attribute("aria-valuetext") == "a0 = 0.03"
    )
    field = box.get_by_label("b3", exact=True).last
    field.fill("-0.25")
    _, b = agrees(box)
    assert b[2] == -0.25 and number(box, "Q") > 1.8  # its absolute value counts
    handle.focus()
    page.keyboard.press("r")
    a, b = agrees(box)
    assert a.tolist() == [0, 1, 0, 0, 0, 0] and not b.any()


def test_the_solutions_of_the_first_exercise_have_the_scores_that_the_page_says(open_page):
    box = figure(open_page(RATIONAL))
    text = (ROOT / "book" / "intro.md").read_text()
    told = re.findall(r"[Ww]ith\s+((?:\$[ab]_\d = [\d.]+\$,? ?)+)[^$]* (?:is|it is) (\d+)\.", text)
    assert len(told) == 2
    for coefficients_, score in told:
        for letter, index, value in re.findall(r"([ab])_(\d) = ([\d.]+)", coefficients_):
            box.get_by_label(f"{letter}{index}", exact=True).last.fill(value)
        agrees(box)
        assert round(number(box, "score")) == int(score)


def test_without_absolute_values_a_pole_is_found(open_page):
    box = figure(open_page(RATIONAL))
    box.get_by_label("absolute values in Q").uncheck()
    box.get_by_label("b2", exact=True).last.fill("-0.4")
    assert (
        number(box, "poles") == 2
        and "1.58" in box.locator('output[data-key="poles"]').text_content()
    )
    assert number(box, "error") == float("inf")
    box.get_by_label("absolute values in Q").check()
    agrees(box)


def test_the_copied_python_computes_the_shown_values(open_page):
    page = open_page(RATIONAL)
    box = figure(page)
    box.locator('button[data-preset="swish"]').click()
    box.get_by_text("copy as Python").click()
    x, names = number(box, "x"), {}
    code = box.locator("pre").text_content().replace("y =", "x = torch.tensor([X])\ny =")
    exec(code.replace("X", repr(x)), names)
    assert names["y"].item() == pytest.approx(number(box, "F"), abs=1e-6)


def test_a_finger_drags_without_scrolling_the_page_and_a_phone_shows_all(open_page):
    page = open_page(RATIONAL, width=390, height=844, has_touch=True, is_mobile=True)
    box = figure(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (
        box.locator('.knob[data-name="a1"]').evaluate("node => getComputedStyle(node).touchAction")
        == "none"
    )
    handle = box.locator('.knob[data-name="a1"]')
    finger(page, handle, 0, -20)
    a, _ = agrees(box)
    assert a[1] > 1.2


def test_the_figure_is_dark_on_a_dark_page(open_page):
    page = open_page(RATIONAL)
    box = figure(page)
    colours = {}
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        colours[theme] = box.evaluate(
            "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).color]"
        )
    assert (
        colours["light"][0] == "rgb(255, 255, 255)"
        and colours["dark"][0] == "rgb(24, 27, 32)"
        and colours["dark"][1] == "rgb(234, 234, 234)"
    )


def test_the_four_denominators_are_those_of_their_formulas(open_page):
    page = open_page(DENOMINATOR)
    box = figure(page)
    a = torch.tensor(RELEASED_GELU[0], dtype=torch.float64)
    for change in (
        lambda: None,
        lambda: drag(page, box.locator('.knob[data-name="b2"]'), 0, -25),
        lambda: box.get_by_label("b1", exact=True).last.fill("-2"),
    ):
        change()
        b, x = coefficients(box, "b").tolist(), number(box, "x")
        terms = [c * x ** (j + 1) for j, c in enumerate(b)]
        P = sum(c * x**i for i, c in enumerate(a.tolist()))
        for version, Q in (
            ("A", 1 + sum(map(abs, terms))),
            ("B", 1 + abs(sum(terms))),
            ("plain", 1 + sum(terms)),
            ("signed", 1 + sum(abs(c) * x ** (j + 1) for j, c in enumerate(b))),
        ):
            assert number(box, f"F {version}") == pytest.approx(P / Q, abs=1e-6)

        def function(z):
            return katlib.rational(
                z[..., None], a[None], torch.tensor(b, dtype=torch.float64)[None]
            )[..., 0]

        assert number(box, "error A") == pytest.approx(max_error(function, "gelu"), abs=1e-6)
    assert (
        number(box, "poles plain") >= 1
        and number(box, "poles signed") >= 1
        and number(box, "least A") == pytest.approx(1)
    )


def test_a_spline_coefficient_moves_its_part_of_the_curve_alone(open_page):
    page = open_page(SPLINE)
    box = figure(page)

    def value_and_expected():
        page.wait_for_timeout(60)
        handles = box.locator(".knob").filter(has_text=re.compile(r"^c\d+$"))
        c = torch.tensor(
            [float(handles.nth(i).get_attribute("aria-valuenow")) for i in range(handles.count())],
            dtype=torch.float64,
        )
        order, grid, x = (
            int(box.locator('button[aria-pressed="true"]').text_content()),
            len(c),
            number(box, "x"),
        )
        grid -= order
        knots = torch.arange(-order, grid + order + 1, dtype=torch.float64) * (2 / grid) - 1
        return number(box, "value"), (
            bspline_basis(torch.tensor(x, dtype=torch.float64), knots, order) @ c
        ).item()

    first, expected = value_and_expected()
    assert (
        first == pytest.approx(expected, abs=1e-6)
        and number(box, "sum") == pytest.approx(1)
        and number(box, "nonzero") == 4
    )
    drag(page, box.locator('.knob[data-name="c1"]'), 0, -40)  # far from x: nothing changes there
    assert number(box, "value") == first
    drag(page, box.locator('.knob[data-name="c5"]'), 0, 40)
    value, expected = value_and_expected()
    assert value == pytest.approx(expected, abs=1e-6) and value != first
    for order in (0, 1, 2):
        box.locator(f'button[data-order="{order}"]').click()
        value, expected = value_and_expected()
        assert (
            value == pytest.approx(expected, abs=1e-6)
            and number(box, "nonzero") <= order + 1
            and number(box, "sum") == pytest.approx(1)
        )
    box.get_by_label("grid").first.fill("9")
    value, expected = value_and_expected()
    assert value == pytest.approx(expected, abs=1e-6) and number(box, "count") == 11


def test_figures_read_on_a_dark_page_and_on_a_phone(open_page):
    page = open_page("notebooks/11_kat_block.html", color_scheme="dark")
    shown = page.locator("figure.katlib-figure").first.evaluate("""figure => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        return {panel: getComputedStyle(figure.closest(".output")).backgroundColor, page: numbers(getComputedStyle(document.body).backgroundColor),
                caption: numbers(getComputedStyle(figure.querySelector("figcaption")).color)};
    }""")
    assert (
        shown["panel"] == "rgba(0, 0, 0, 0)"
        and min(shown["caption"][:3]) - max(shown["page"][:3]) > 100
    )  # light on dark, no pale panel
    page = open_page("notebooks/11_kat_block.html", width=390)
    widths = page.evaluate("""() => [document.documentElement.scrollWidth,
                                     document.querySelector("figure.katlib-figure img").getBoundingClientRect().width]""")
    assert widths[0] <= 390 < widths[1]  # the drawing scrolls in its own box, and the page does not


@pytest.fixture
def trained(open_page):
    """Chapter 14's figure and the record that it shows, once the page holds one."""
    path = ROOT / "results" / "inside-kat-cifar10.json"
    if not path.exists():
        pytest.skip("no record of a trained KAT in results/")

    def open_(**options):
        page = open_page(TRAINED, **options)
        return page, figure(page), inside.load_record(path)

    return open_


def chosen(box):
    """Name, group and place of the epoch that the figure of a trained KAT shows."""
    block, function, group = (
        box.get_by_label(key, exact=True).first.input_value()
        for key in ("block", "function", "group")
    )
    epoch = int(float(box.locator('.knob[data-name="epoch"]').get_attribute("aria-valuenow")))
    return f"blocks.{block}.mlp.{function}", int(group), epoch


def agrees_with(box, record):
    """The numbers of the figure against katlib's and the record's, to 1e-6, once it has been drawn."""
    box.evaluate(
        "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    )
    name, group, epoch = chosen(box)
    f, (a, b), start = (
        record["functions"][name],
        inside.coefficients(record, name, group, epoch),
        inside.coefficients(record, name, group, 0),
    )
    X = torch.tensor([number(box, "x")], dtype=torch.float64, requires_grad=True)
    F, F_0 = (
        katlib.rational(X, a[None], b[None]),
        katlib.rational(X, start[0][None], start[1][None]),
    )
    (slope,) = torch.autograd.grad(F.sum(), X)
    expected = {
        "F": F.item(),
        "start": F_0.item(),
        "dF": slope.item(),
        "epoch": record["epochs"][epoch]["epoch"],
        "assumed": 1
        / katlib.gain(
            lambda z: katlib.rational(z[..., None], start[0][None], start[1][None])[..., 0]
        ),
    }
    expected |= {
        key: f[other][epoch][group]
        for key, other in {
            "moved": "moved",
            "mean": "mean",
            "std": "std",
            "inside": "inside",
            "second": "second_moment",
        }.items()
    }
    middles, shares = inside.density(record, name, group, epoch)
    middles.requires_grad_()
    (slopes,) = torch.autograd.grad(
        katlib.rational(middles[:, None], a[None], b[None]).sum(), middles
    )
    expected["outside"] = 1 - shares.sum().item()
    expected["falling"] = ((slopes < 0) * shares).sum().item() / shares.sum().item()
    for key, value in expected.items():
        assert number(box, key) == pytest.approx(value, abs=1e-6), key
    return name, group, epoch


def test_the_trained_kat_opens_where_most_has_moved_and_its_numbers_are_those_of_katlib(trained):
    page, box, record = trained()
    name, group, epoch = agrees_with(box, record)
    moved = {
        (n, g): value
        for n, f in record["functions"].items()
        for g, value in enumerate(f["moved"][-1])
    }
    assert (name, group) == max(moved, key=moved.get) and epoch == len(record["epochs"]) - 1
    assert (
        box.locator(".tile").count() == len(moved)
        and box.locator('.tile[aria-checked="true"]').count() == 1
    )
    drag(page, box.locator('.knob[data-name="x"]'), -160, 0)
    assert number(box, "x") < 0 and agrees_with(box, record)


def test_the_epoch_follows_the_handle_and_the_keys(trained):
    page, box, record = trained()
    last = len(record["epochs"]) - 1
    handle, before = box.locator('.knob[data-name="epoch"]'), curve(box, "blue")
    drag(page, handle, -300, 0)
    dragged = agrees_with(box, record)[2]
    assert 0 < dragged < last and curve(box, "blue") != before
    page.keyboard.press("ArrowLeft")
    assert agrees_with(box, record)[2] == dragged - 1
    for _ in range(last + 1):
        page.keyboard.press("ArrowLeft")
    assert agrees_with(box, record)[2] == 0 and number(box, "moved") == 0
    assert number(box, "F") == number(box, "start")
    page.keyboard.press("r")
    assert agrees_with(box, record)[2] == last


def test_tiles_and_menus_choose_the_function(trained):
    page, box, record = trained()
    box.locator('.tile[data-place="0 act2 3"]').click()
    assert agrees_with(box, record)[:2] == ("blocks.0.mlp.act2", 3)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert agrees_with(box, record)[:2] == ("blocks.1.mlp.act1", 4)
    assert box.locator(".tile:focus").get_attribute("data-place") == "1 act1 4"
    box.get_by_label("group", exact=True).first.select_option("7")
    box.get_by_label("function", exact=True).first.select_option("act2")
    assert agrees_with(box, record)[:2] == ("blocks.1.mlp.act2", 7)
    assert box.locator('.tile[aria-checked="true"]').get_attribute("data-place") == "1 act2 7"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_film_plays_from_the_start_glides_unless_motion_is_unwanted_and_stops(trained, motion):
    page, box, record = trained(reduced_motion=motion)
    page.wait_for_timeout(400)
    last, player, handle = (
        len(record["epochs"]) - 1,
        box.locator(".play"),
        box.locator('.knob[data-name="epoch"]'),
    )
    assert chosen(box)[2] == last and "play" in player.text_content()  # it does not start by itself
    player.click()
    places = [0.0]
    while places[-1] < 1 and len(places) < 400:
        page.wait_for_timeout(20)
        places.append(float(handle.get_attribute("aria-valuenow")))
    player.click()
    box.locator(".play", has_text="play").wait_for()
    assert places == sorted(places) and 1 <= places[-1] < last
    assert any(place % 1 for place in places) == (motion == "no-preference")
    stopped = agrees_with(box, record)[2]  # at a whole epoch, where its numbers are
    page.wait_for_timeout(700)
    assert agrees_with(box, record)[2] == stopped
    handle.focus()
    page.keyboard.press(" ")
    box.locator(".play", has_text="pause").wait_for()
    page.keyboard.press("ArrowLeft")  # a hand on the handle stops the film
    box.locator(".play", has_text="play").wait_for()


def test_the_trained_kat_fits_a_phone_and_a_finger_moves_the_epoch(trained):
    page, box, record = trained(width=390, height=844, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    handle = box.locator('.knob[data-name="epoch"]')
    finger(page, handle, -120, 0)
    assert agrees_with(box, record)[2] < len(record["epochs"]) - 2
    tile = box.locator('.tile[data-place="0 act1 0"]')
    tile.scroll_into_view_if_needed()
    tile.tap()
    assert agrees_with(box, record)[:2] == ("blocks.0.mlp.act1", 0)
