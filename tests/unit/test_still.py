"""What an output holds beside a live figure: a still picture of it, and what to do."""

import base64
import importlib.util
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import katlib
from katlib.rational import RELEASED_GELU
from katlib.widgets import still
from katlib.widgets.live import LiveFigure
from katlib.widgets.rational import POINTS, values

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
A, B = RELEASED_GELU


def shown(figure) -> dict:
    data, _ = figure._repr_mimebundle_()
    return data


def picture(text: str) -> str:
    return base64.b64decode(re.search(r"base64,([^\"]+)", text)[1]).decode()


with_a_picture = pytest.mark.parametrize(
    "figure",
    [
        katlib.RationalExplorer,
        katlib.DenominatorExplorer,
        katlib.SplineExplorer,
        katlib.TrainedExplorer,
    ],
    ids=lambda figure: figure.__name__,
)


@with_a_picture
def test_an_output_holds_a_still_picture_beside_the_live_figure(figure):
    data = shown(figure())
    assert WIDGET_VIEW in data
    assert still.BELOW_THE_PICTURE in data["text/html"]
    assert ElementTree.fromstring(picture(data["text/html"])).tag.endswith("svg")


@with_a_picture
def test_a_still_picture_is_small_and_always_the_same(figure):
    text = shown(figure())["text/html"]
    assert len(text) < 20_000
    assert shown(figure())["text/html"] == text


def test_a_still_picture_follows_the_figure():
    explorer = katlib.RationalExplorer("gelu")
    before = shown(explorer)["text/html"]
    explorer.numerator = [0, 2, 0, 0, 0, 0]
    assert shown(explorer)["text/html"] != before


def test_a_figure_without_curves_has_a_sentence_alone():
    assert shown(LiveFigure())["text/html"] == f"<p>{still.IN_WORDS}</p>"


def test_without_matplotlib_there_is_a_sentence_alone(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert shown(katlib.RationalExplorer())["text/html"] == f"<p>{still.IN_WORDS}</p>"


def test_a_still_picture_leaves_the_notebooks_style_alone():
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 7, "axes.grid": False}):
        shown(katlib.RationalExplorer())
        assert matplotlib.rcParams["lines.linewidth"] == 7
        assert not matplotlib.rcParams["axes.grid"]


@pytest.mark.parametrize(
    "numerator, denominator",
    [([1e308, 1e308, 0.0], [1e300, -0.4]), ([0.0], []), ([0.0, 1.0], [0.0, -0.4])],
    ids=["huge", "constant", "poles"],
)
def test_functions_that_are_hard_to_draw_have_a_still_picture(numerator, denominator):
    explorer = katlib.RationalExplorer((numerator, denominator))
    explorer.safe = False
    assert picture(shown(explorer)["text/html"])


def test_the_function_of_a_still_picture_is_katlibs():
    x = torch.from_numpy(POINTS)[:, None]
    a, b = (torch.tensor([c], dtype=torch.float64) for c in (A, B))
    expected = katlib.rational(x, a, b)[:, 0].numpy()
    assert values(POINTS, A, B) == pytest.approx(expected, abs=1e-12)


def test_the_denominators_of_a_still_picture_are_those_of_their_formulas():
    x, b = np.array([-1.5, 2.0]), [0.5, -0.25]
    terms = np.array([b[0] * x, b[1] * x**2])
    signed = 1 + 0.5 * x + 0.25 * x**2
    assert values(x, [1.0], b, "B") == pytest.approx(1 / (1 + abs(terms.sum(0))))
    assert values(x, [1.0], b, "signed") == pytest.approx(1 / signed)
    assert values(x, [1.0], b, "plain") == pytest.approx(1 / (1 + terms.sum(0)))


# ---- the part of anywidget that runs in the browser


def test_every_version_of_anywidget_may_draw_a_figure():
    state = katlib.RationalExplorer().get_state()
    assert state["_model_module_version"] == "*"
    assert state["_view_module_version"] == "*"
