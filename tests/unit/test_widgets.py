"""The live figures on Python's side: where they start, what they take, what they write back. tests/browser drives them in a browser."""

import json

import pytest
import torch
import traitlets

import katlib
from katlib.rational import RELEASED_GELU, initial_coefficients
from katlib.widgets import live


def test_the_explorer_starts_from_names_fits_pairs_and_modules():
    fit = katlib.fit_rational("tanh", degrees=(3, 2))
    module = katlib.GroupRational(64, init="gelu", numerator_groups=2)
    with torch.no_grad():
        module.weight_denominator[5] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for start, a, b in (
        ("swish", *initial_coefficients("swish")),
        (fit, fit.numerator, fit.denominator),
        (RELEASED_GELU, *map(torch.tensor, RELEASED_GELU)),
    ):
        explorer = katlib.RationalExplorer(start)
        assert explorer.numerator == pytest.approx(
            a.tolist()
        ) and explorer.denominator == pytest.approx(b.tolist())
    explorer = katlib.RationalExplorer(module, group=5)
    assert (
        explorer.denominator == [1, 2, 3, 4]
        and explorer.numerator == module.weight_numerator[1].tolist()
    )
    with pytest.raises(ValueError, match="groups 0 to 7"):
        katlib.RationalExplorer(module, group=8)
    with pytest.raises(ValueError, match="allowed are 'identity'"):
        katlib.RationalExplorer("swish", target="selu")


def test_write_back_changes_the_group_and_what_it_shares():
    module = katlib.GroupRational(64)
    explorer = katlib.RationalExplorer(module, group=3)
    explorer.denominator = torch.tensor([0.5, 0.25, 0.0, 0.0])
    explorer.numerator = [0, 2, 0, 0, 0, 0]
    before = module.weight_denominator.detach().clone()
    explorer.write_back()
    assert module.weight_denominator[3].tolist() == [
        0.5,
        0.25,
        0,
        0,
    ] and module.weight_numerator.tolist() == [[0, 2, 0, 0, 0, 0]]
    assert torch.equal(
        module.weight_denominator[[0, 1, 2, 4, 5, 6, 7]], before[[0, 1, 2, 4, 5, 6, 7]]
    )
    assert module.weight_denominator.requires_grad and module.weight_denominator.grad is None
    explorer.safe = False
    with pytest.raises(ValueError, match="plain denominator"):
        explorer.write_back()
    with pytest.raises(ValueError, match="did not start from a GroupRational"):
        katlib.RationalExplorer("swish").write_back()


def test_coefficients_keep_their_number_and_are_finite():
    explorer = katlib.RationalExplorer("swish")
    for bad in ([1.0], [0.0] * 5 + [float("nan")], [0.0] * 5 + [float("inf")]):
        with pytest.raises(traitlets.TraitError, match="6 finite numbers"):
            explorer.numerator = bad
    assert katlib.GroupRational(8, groups=2, init=explorer).weight_denominator.shape == (2, 4)


@pytest.mark.parametrize(
    "options", [{"grid": 1}, {"order": 4}, {"interval": (1, 1)}, {"coefficients": [0.0] * 7}]
)
def test_splines_that_cannot_be_drawn_are_refused(options):
    with pytest.raises(ValueError, match="allowed are|need 8"):
        katlib.SplineExplorer(**options)


@pytest.mark.parametrize(
    "make",
    [katlib.RationalExplorer, katlib.DenominatorExplorer, katlib.SplineExplorer],
    ids=lambda make: make.__name__,
)
def test_the_state_that_a_page_stores_is_small_whole_and_asks_for_nothing(make):
    state = make().get_state()
    text = json.dumps(state)
    assert (
        len(text) < 45_000
        and "export default { render }" in state["_esm"]
        and ".katlib-live" in state["_css"]
    )
    assert not any(
        word in text.replace("http://www.w3.org/2000/svg", "")
        for word in ("http://", "https://", "import(", "fetch(")
    )
    assert make().__repr__() == f"{make.__name__}()"


@pytest.fixture(scope="module")
def record():
    """Of an untrained KAT and of the same one shaken, in the form that a training run leaves."""
    from katlib.book.recorder import Recorder

    torch.manual_seed(0)
    model = katlib.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=10, groups=4
    )
    recorder = Recorder(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    for epoch in range(3):
        recorder(model, {"epoch": epoch, "test_accuracy": 0.1 * epoch})
        with torch.no_grad():
            model.blocks[1].mlp.act2.weight_denominator[3] += 0.2  # its last group moves most
            model.blocks[0].mlp.act1.weight_numerator[0, 2] += 0.01
    return recorder.record


def test_the_explorer_of_a_trained_kat_starts_where_most_has_moved(record):
    explorer = katlib.TrainedExplorer(record)
    assert (explorer.block, explorer.function, explorer.group, explorer.epoch) == (1, "act2", 3, 2)
    moved = {
        (name, group): value
        for name, f in record["functions"].items()
        for group, value in enumerate(f["moved"][-1])
    }
    assert max(moved, key=moved.get) == ("blocks.1.mlp.act2", 3)
    within = katlib.TrainedExplorer(
        record, block=0, epoch=-3
    )  # the choice that is left: the one that moved most within it
    assert (within.block, within.function, within.epoch) == (0, "act1", 0)
    assert json.loads(within.record) == record and repr(within) == "TrainedExplorer()"


def test_the_explorer_of_a_trained_kat_is_driven_from_python_and_keeps_to_its_record(record):
    explorer, seen = katlib.TrainedExplorer(record), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])))
    explorer.block, explorer.function, explorer.group, explorer.epoch = 0, "act1", 2, 1
    assert seen == [("block", 0), ("function", "act1"), ("group", 2), ("epoch", 1)]
    for key, value in (
        ("block", 2),
        ("function", "act3"),
        ("group", 4),
        ("group", -1),
        ("epoch", 3),
    ):
        with pytest.raises(traitlets.TraitError, match=f"{key}=.*; the record has"):
            setattr(explorer, key, value)
        with pytest.raises(traitlets.TraitError, match=f"{key}=.*; the record has"):
            katlib.TrainedExplorer(record, **{key: value})
    for bad in (
        {"functions": {}},
        {"epochs": []},
        {"functions": {"act": record["functions"]["blocks.0.mlp.act1"]}},
    ):
        with pytest.raises(ValueError, match="needed are"):
            katlib.TrainedExplorer(record | bad)


def test_the_state_of_a_trained_kats_explorer_is_its_record_and_little_more(record):
    state = katlib.TrainedExplorer(record).get_state()
    assert len(json.dumps({key: value for key, value in state.items() if key != "record"})) < 60_000
    assert not any(
        word in state["_esm"].replace("http://www.w3.org/2000/svg", "")
        for word in ("http://", "https://", "import(", "fetch(")
    )


def test_importing_katlib_does_not_load_ipywidgets():
    import subprocess
    import sys

    code = "import sys, katlib; assert 'ipywidgets' not in sys.modules; katlib.SplineExplorer; assert 'ipywidgets' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="NoSuchExplorer"):
        katlib.NoSuchExplorer
    assert live.LiveFigure._css
