"""The live figures of chapters 1, 4, 7 and 13 on Python's side: what they take and what they store.

tests/browser/test_live_a.py drives them in a browser.
"""

import json
import math

import pytest
import torch
import traitlets

import katlib
from katlib.rational import initial_coefficients

FIGURES = [
    katlib.FitExplorer,
    katlib.PadeExplorer,
    katlib.DepthExplorer,
    katlib.SeedsExplorer,
]
each_figure = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)


@each_figure
def test_the_state_that_a_page_stores_is_small_and_whole(figure):
    state = figure().get_state()
    assert len(json.dumps(state)) < 45_000
    assert "export default { render }" in state["_esm"]
    assert ".katlib-live" in state["_css"]


@each_figure
def test_the_state_that_a_page_stores_asks_for_nothing(figure):
    text = json.dumps(figure().get_state()).replace("http://www.w3.org/2000/svg", "")
    assert not any(word in text for word in ("http://", "https://", "import(", "fetch("))


@each_figure
def test_a_figure_is_written_as_its_name(figure):
    assert repr(figure()) == f"{figure.__name__}()"


REFUSED = [
    (katlib.DepthExplorer, {"function": "selu"}),
    (katlib.DepthExplorer, {"std": 0.0}),
    (katlib.DepthExplorer, {"std": math.nan}),
    (katlib.DepthExplorer, {"std": "0.1"}),
    (katlib.DepthExplorer, {"depth": 33}),
    (katlib.DepthExplorer, {"start": math.inf}),
    (katlib.PadeExplorer, {"target": "mish"}),
    (katlib.PadeExplorer, {"degrees": [5]}),
    (katlib.PadeExplorer, {"degrees": [0, 4]}),
    (katlib.PadeExplorer, {"degrees": [5, 7]}),
    (katlib.FitExplorer, {"target": "hat"}),
    (katlib.FitExplorer, {"activation": "swish"}),
    (katlib.FitExplorer, {"units": 0}),
    (katlib.FitExplorer, {"learned_units": 5}),
    (katlib.FitExplorer, {"offsets": [0.0] * 6}),
    (katlib.FitExplorer, {"offsets": [math.nan] * 7}),
    (katlib.SeedsExplorer, {"difference": 3.0}),
    (katlib.SeedsExplorer, {"scatter": 0.0}),
    (katlib.SeedsExplorer, {"seeds": 1}),
    (katlib.SeedsExplorer, {"seeds": 2.5}),
    (katlib.SeedsExplorer, {"multiplier": "z"}),
]
refused = pytest.mark.parametrize("figure, wrong", REFUSED, ids=str)


@refused
def test_what_cannot_be_drawn_cannot_be_asked_for(figure, wrong):
    with pytest.raises(traitlets.TraitError, match=next(iter(wrong))):
        figure(**wrong)


@refused
def test_what_cannot_be_drawn_cannot_be_assigned(figure, wrong):
    explorer = figure()
    ((name, value),) = wrong.items()
    before = getattr(explorer, name)
    with pytest.raises(traitlets.TraitError, match=name):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


# ---- DepthExplorer


@pytest.mark.parametrize("name, channels", [("swish", 64), ("tanh", 256), ("identity", 16)])
def test_the_std_is_the_derived_one_unless_it_is_given(name, channels):
    explorer = katlib.DepthExplorer(name, channels=channels)
    assert explorer.std == pytest.approx(math.sqrt(katlib.gain(name) / channels))
    assert katlib.DepthExplorer(name, std=0.02, channels=channels).std == 0.02


@pytest.mark.parametrize("channels", [7, 257, None])
def test_a_number_of_channels_that_cannot_be_drawn_is_refused(channels):
    with pytest.raises(traitlets.TraitError, match="channels"):
        katlib.DepthExplorer(channels=channels)


def test_the_channels_of_a_depth_explorer_cannot_be_assigned():
    explorer = katlib.DepthExplorer()
    with pytest.raises(traitlets.TraitError, match="channels cannot be assigned"):
        explorer.channels = 128


# ---- FitExplorer


def test_the_learned_activation_starts_as_katlibs_gelu():
    ((name, a, b),) = katlib.FitExplorer().presets
    numerator, denominator = initial_coefficients("gelu")
    assert name == "gelu"
    assert a == pytest.approx(numerator.tolist())
    assert b == pytest.approx(denominator.tolist())


def test_the_offsets_of_a_curve_can_be_a_tensor():
    explorer = katlib.FitExplorer(offsets=torch.arange(7.0) / 10)
    assert explorer.offsets == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


# ---- still pictures


def points(explorer, number_of_curve: int = 0):
    curve = explorer._still()[number_of_curve]
    return torch.as_tensor(curve.x), torch.as_tensor(curve.y)


def test_the_still_picture_of_a_depth_explorer_has_the_variance_map():
    q, m = points(katlib.DepthExplorer("tanh"))
    # at q = 1 the derived std keeps 1, and tanh comes back to it
    assert m[(q - 1).abs().argmin()].item() == pytest.approx(1, abs=1e-6)
    assert m[-1] < q[-1]


def test_the_still_picture_of_a_pade_explorer_has_the_function():
    x, y = points(katlib.PadeExplorer("exp"))
    assert torch.equal(y, x.exp())


def test_the_still_picture_of_a_fit_explorer_has_the_curve_with_its_hills():
    x, y = points(katlib.FitExplorer("corner", offsets=[0, 0, 0, 0, 0, 0, 0.5]))
    near = (x - 0.9).abs().argmin()
    assert (y - x.abs())[near].item() == pytest.approx(0.5, abs=0.01)
    assert (y - x.abs())[:60].abs().max() < 1e-12
