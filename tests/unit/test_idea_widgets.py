"""The live figures of chapters 3, 6, 8 and 15 on Python's side; tests/browser drives them."""

import json

import pytest
import traitlets

import katlib

# ---- GroupExplorer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"functions": [0] * 7}, "8 whole numbers from 0 to 7"),
        ({"functions": [8] * 8}, "8 whole numbers from 0 to 7"),
        ({"functions": [0.5] * 8}, "8 whole numbers from 0 to 7"),
        ({"functions": None}, "8 whole numbers from 0 to 7"),
        ({"sharing": "everyone"}, "allowed are 'edge', 'channel', 'group'"),
    ],
)
def test_a_way_to_share_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        katlib.GroupExplorer(**options)


@pytest.mark.parametrize(
    "name, value", [("functions", [9] * 8), ("sharing", "everyone"), ("layer", [1, 2])]
)
def test_a_way_to_share_that_cannot_be_drawn_cannot_be_assigned(name, value):
    explorer = katlib.GroupExplorer()
    with pytest.raises(traitlets.TraitError):
        setattr(explorer, name, value)


def test_functions_are_assigned_as_a_tuple_too():
    explorer = katlib.GroupExplorer()
    explorer.functions = tuple(range(8))
    assert explorer.functions == [0, 1, 2, 3, 4, 5, 6, 7]


# ---- SummationExplorer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": "backwards"}, "allowed are 'one by one'"),
        ({"format": "float8"}, "allowed are 'float32'"),
        ({"terms": [1.0]}, "allowed are 'ones'"),
        ({"steps": 21}, "allowed are 0 to 20"),
        ({"steps": "many"}, "allowed are 0 to 20"),
    ],
)
def test_a_sum_that_the_figure_does_not_know_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        katlib.SummationExplorer(**options)


@pytest.mark.parametrize(
    "name, value", [("order", "backwards"), ("format", "float8"), ("terms", "twos"), ("steps", 21)]
)
def test_a_sum_that_the_figure_does_not_know_cannot_be_assigned(name, value):
    with pytest.raises(traitlets.TraitError):
        setattr(katlib.SummationExplorer(), name, value)


# ---- SplineCostExplorer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": 0}, "allowed are 1 to 20"),
        ({"grid": 2.5}, "allowed are 1 to 20"),
        ({"order": 5}, "allowed are 0 to 4"),
        ({"order": True}, "allowed are 0 to 4"),
    ],
)
def test_a_basis_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        katlib.SplineCostExplorer(**options)


@pytest.mark.parametrize("name, value", [("grid", 21), ("order", -1)])
def test_a_basis_that_cannot_be_drawn_cannot_be_assigned(name, value):
    with pytest.raises(traitlets.TraitError):
        setattr(katlib.SplineCostExplorer(), name, value)


def test_the_still_picture_of_a_basis_shows_its_bytes():
    curves = katlib.SplineCostExplorer(order=3)._still()
    order_three = curves[3]
    # grid 5
    assert order_three.y[4] == 1762
    assert [curve.dashed for curve in curves] == [True, True, True, False, True]


# ---- ConversionExplorer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"degrees": (4, 4)}, r"allowed are \(3, 2\), \(5, 4\), \(7, 6\)"),
        ({"degrees": None}, "allowed are"),
        ({"reach": 1}, "whole numbers from 2 to 8"),
        ({"reach": 2.5}, "whole numbers from 2 to 8"),
        ({"spread": 6}, "allowed are 0.25 to 5"),
        ({"spread": "wide"}, "finite numbers"),
    ],
)
def test_a_conversion_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        katlib.ConversionExplorer(**options)


@pytest.mark.parametrize(
    "name, value",
    [("degrees", (4, 4)), ("reach", 9), ("spread", float("nan")), ("fits", {}), ("mlp", {})],
)
def test_a_conversion_that_cannot_be_drawn_cannot_be_assigned(name, value):
    with pytest.raises(traitlets.TraitError):
        setattr(katlib.ConversionExplorer(), name, value)


def test_the_still_picture_of_a_conversion_shows_both_functions():
    gelu, fitted = katlib.ConversionExplorer()._still()
    inside = abs(gelu.x) <= 3
    assert 0 < abs(gelu.y - fitted.y)[inside].max() < 0.005


def test_the_browser_assigns_degrees_as_a_list():
    explorer = katlib.ConversionExplorer()
    explorer.degrees = [7, 6]
    assert explorer.degrees == (7, 6)


@pytest.mark.parametrize("degrees, reach", [((3, 2), 2), ((5, 4), 5)])
def test_the_stored_fits_are_those_of_katlib(degrees, reach):
    m, n = degrees
    stored = katlib.ConversionExplorer().fits[f"{m},{n}"][reach - 2]
    fit = katlib.fit_rational("gelu", degrees, (-reach, reach))
    assert stored[0] == pytest.approx(fit.numerator.tolist(), rel=1e-3, abs=1e-6)
    assert stored[1] == pytest.approx(fit.denominator.tolist(), rel=1e-3, abs=1e-6)


# ---- all of them

each_figure = pytest.mark.parametrize(
    "figure",
    [
        katlib.GroupExplorer,
        katlib.SummationExplorer,
        katlib.SplineCostExplorer,
        katlib.ConversionExplorer,
    ],
    ids=lambda figure: figure.__name__,
)


@each_figure
def test_the_state_that_a_page_stores_is_small_and_whole(figure):
    state = figure().get_state()
    assert len(json.dumps(state)) < 45_000
    assert "export default { render }" in state["_esm"]


@each_figure
def test_a_figure_is_written_as_its_name(figure):
    assert repr(figure()) == f"{figure.__name__}()"
