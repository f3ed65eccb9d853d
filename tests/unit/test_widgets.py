"""The live figures on Python's side: where they start, what they take, what they write back.

tests/browser drives them in a browser.
"""

import json
import subprocess
import sys

import pytest
import torch
import traitlets

import katlib
from katlib.rational import RELEASED_GELU, initial_coefficients
from katlib.widgets import live
from katlib.widgets.rational import quadrature

# ---- RationalExplorer


def test_the_explorer_starts_from_a_name():
    explorer = katlib.RationalExplorer("swish")
    a, b = initial_coefficients("swish")
    assert explorer.numerator == pytest.approx(a.tolist())
    assert explorer.denominator == pytest.approx(b.tolist())


def test_the_explorer_starts_from_a_fit():
    fit = katlib.fit_rational("tanh", degrees=(3, 2))
    explorer = katlib.RationalExplorer(fit)
    assert explorer.numerator == pytest.approx(fit.numerator.tolist())
    assert explorer.denominator == pytest.approx(fit.denominator.tolist())


def test_the_explorer_starts_from_a_pair():
    explorer = katlib.RationalExplorer(RELEASED_GELU)
    assert explorer.numerator == pytest.approx(RELEASED_GELU[0])
    assert explorer.denominator == pytest.approx(RELEASED_GELU[1])


@pytest.fixture
def module() -> katlib.GroupRational:
    """Eight groups, of which the first four share a numerator, and the last four."""
    module = katlib.GroupRational(64, init="gelu", numerator_groups=2)
    with torch.no_grad():
        module.weight_denominator[5] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return module


def test_the_explorer_starts_from_a_group_of_a_module(module):
    explorer = katlib.RationalExplorer(module, group=5)
    assert explorer.denominator == [1, 2, 3, 4]
    assert explorer.numerator == module.weight_numerator[1].tolist()


@pytest.mark.parametrize("group", [-1, 8])
def test_a_group_that_the_module_does_not_have_is_refused(module, group):
    with pytest.raises(ValueError, match="groups 0 to 7"):
        katlib.RationalExplorer(module, group=group)


@pytest.mark.parametrize("explorer", [katlib.RationalExplorer, katlib.DenominatorExplorer])
def test_a_target_that_is_not_known_is_refused(explorer):
    with pytest.raises(ValueError, match="allowed are 'identity'"):
        explorer(target="selu")


@pytest.mark.parametrize(
    "degrees, names",
    [
        ((5, 4), ["identity", "relu", "gelu", "swish", "tanh", "released “gelu”"]),
        ((3, 2), ["identity", "relu", "gelu", "swish", "tanh"]),
    ],
)
def test_the_explorer_offers_what_is_known_at_its_degrees(degrees, names):
    explorer = katlib.RationalExplorer("gelu", degrees=degrees)
    assert sorted(name for name, _, _ in explorer.presets) == sorted(names)
    assert all((len(a) - 1, len(b)) == degrees for _, a, b in explorer.presets)


def test_the_explorer_of_a_constant_numerator_has_nothing_to_offer():
    explorer = katlib.RationalExplorer(([0.5], [1.0, 2.0]))
    assert explorer.presets == []
    assert set(explorer.best.values()) == {0.0}


def test_the_quadrature_is_that_of_the_gain():
    nodes, weights = map(torch.tensor, quadrature())
    assert weights.sum().item() == pytest.approx(1)
    second_moment = (weights * torch.nn.functional.gelu(nodes) ** 2).sum().item()
    assert 1 / second_moment == pytest.approx(katlib.gain("gelu"), rel=1e-5)


def test_the_handles_of_a_newcomer_begin_with_the_values_that_are_given():
    explorer = katlib.RationalExplorer("gelu", handles={"a0": 1.0, "b2": 0.5})
    a, b = initial_coefficients("gelu")
    assert explorer.handles == ["a0", "b2"]
    assert explorer.numerator == pytest.approx([1.0, *a.tolist()[1:]])
    assert explorer.denominator[1] == 0.5 and explorer.denominator[2] == pytest.approx(b[2])


@pytest.mark.parametrize("handles", [{"a6": 0.0}, {"b0": 0.0}, {"a0": float("nan")}])
def test_a_handle_that_there_is_not_is_refused(handles):
    with pytest.raises(ValueError, match="handles"):
        katlib.RationalExplorer("gelu", handles=handles)


def test_a_module_can_start_from_an_explorer():
    explorer = katlib.RationalExplorer("swish")
    module = katlib.GroupRational(8, groups=2, init=explorer)
    assert module.weight_denominator.shape == (2, 4)


# ---- writing back


def test_write_back_changes_the_group_and_what_it_shares():
    module = katlib.GroupRational(64)
    before = module.weight_denominator.detach().clone()
    explorer = katlib.RationalExplorer(module, group=3)
    explorer.denominator = torch.tensor([0.5, 0.25, 0.0, 0.0])
    explorer.numerator = [0, 2, 0, 0, 0, 0]
    explorer.write_back()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert module.weight_denominator[3].tolist() == [0.5, 0.25, 0, 0]
    assert module.weight_numerator.tolist() == [[0, 2, 0, 0, 0, 0]]
    assert torch.equal(module.weight_denominator[others], before[others])


def test_write_back_is_not_seen_by_autograd():
    module = katlib.GroupRational(64)
    katlib.RationalExplorer(module, group=3).write_back()
    assert module.weight_denominator.requires_grad
    assert module.weight_denominator.grad is None


def test_the_plain_denominator_cannot_be_written_back():
    explorer = katlib.RationalExplorer(katlib.GroupRational(64))
    explorer.safe = False
    with pytest.raises(ValueError, match="plain denominator"):
        explorer.write_back()


def test_without_a_module_there_is_nothing_to_write_to():
    with pytest.raises(ValueError, match="did not start from a GroupRational"):
        katlib.RationalExplorer("swish").write_back()


@pytest.mark.parametrize(
    "bad",
    [[1.0], [0.0] * 5 + [float("nan")], [0.0] * 5 + [float("inf")]],
    ids=["too few", "nan", "inf"],
)
def test_coefficients_keep_their_number_and_are_finite(bad):
    explorer = katlib.RationalExplorer("swish")
    with pytest.raises(traitlets.TraitError, match="6 finite numbers"):
        explorer.numerator = bad


not_numbers = pytest.mark.parametrize(
    "bad",
    [
        [0.0, float("nan"), 0.0, 0.0],
        [0.0, float("inf"), 0.0, 0.0],
        [0.0, 10**400, 0.0, 0.0],
        ["1", "2", "3", "4"],
        "1234",
        None,
        3,
        [[1.0, 2.0, 3.0, 4.0]],
        torch.ones(2, 2),
        torch.tensor(1.0),
        torch.ones(4, device="meta"),
        {1.0, 2.0, 3.0, 4.0},
        {1: 2.0},
        [1j, 2.0, 3.0, 4.0],
    ],
    ids=repr,
)


@not_numbers
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: katlib.DenominatorExplorer(numerator=bad),
        lambda bad: katlib.DenominatorExplorer(denominator=bad),
        lambda bad: katlib.RationalExplorer((bad, [1.0])),
        lambda bad: katlib.RationalExplorer(([1.0], bad)),
        lambda bad: katlib.SplineExplorer([bad] if bad is None else bad, grid=3, order=1),
    ],
    ids=["four numerator", "four denominator", "numerator", "denominator", "spline"],
)
def test_a_figure_of_something_else_than_numbers_is_refused(make, bad):
    with pytest.raises(ValueError, match="finite numbers, in a list or a tensor of one dimension"):
        make(bad)


@not_numbers
@pytest.mark.parametrize(
    "figure, name",
    [
        (katlib.RationalExplorer, "numerator"),
        (katlib.DenominatorExplorer, "denominator"),
        (katlib.SplineExplorer, "coefficients"),
    ],
    ids=["rational", "four denominators", "spline"],
)
def test_something_else_than_numbers_cannot_be_assigned(figure, name, bad):
    explorer = figure()
    before = list(getattr(explorer, name))
    with pytest.raises(traitlets.TraitError, match=f"{name}=.* finite numbers"):
        setattr(explorer, name, bad)
    assert getattr(explorer, name) == before


@pytest.mark.parametrize("start", [[], [1.0] * 3, None, 3, {}, torch.ones(2, 4)], ids=repr)
def test_a_start_that_is_none_is_refused(start):
    with pytest.raises(ValueError, match=r"start=.*; allowed are|numerator=.*; allowed are"):
        katlib.RationalExplorer(start)


def test_a_numerator_without_entries_is_refused():
    with pytest.raises(ValueError, match="1 or more finite numbers"):
        katlib.DenominatorExplorer(numerator=[])


def test_a_denominator_without_entries_keeps_none():
    explorer = katlib.RationalExplorer(([0.0, 1.0], []))
    with pytest.raises(traitlets.TraitError, match="0 finite numbers"):
        explorer.denominator = [1.0]


@pytest.mark.parametrize("group", ["a", 0.5, None])
def test_a_group_that_is_no_number_is_refused(module, group):
    with pytest.raises(ValueError, match="groups 0 to 7"):
        katlib.RationalExplorer(module, group=group)


@pytest.mark.parametrize(
    "figure, name",
    [
        (katlib.RationalExplorer, "interval"),
        (katlib.RationalExplorer, "presets"),
        (katlib.DenominatorExplorer, "interval"),
        (katlib.SplineExplorer, "interval"),
    ],
)
def test_what_the_page_reads_once_cannot_be_assigned(figure, name):
    explorer = figure()
    with pytest.raises(traitlets.TraitError, match=f"{name} cannot be assigned"):
        setattr(explorer, name, [float("nan"), 1.0])


# ---- SplineExplorer


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": 1}, "allowed are"),
        ({"order": 4}, "allowed are"),
        ({"interval": (1, 1)}, "allowed are"),
        ({"coefficients": [0.0] * 7}, "need 8"),
        ({"coefficients": []}, "need 8"),
        ({"grid": 2.5}, "allowed are"),
        ({"grid": "5"}, "allowed are"),
        ({"order": None}, "allowed are"),
        ({"order": True}, "allowed are"),
        ({"interval": (0, float("inf"))}, "allowed are"),
        ({"interval": (0, 1e-300)}, "allowed are"),
        ({"interval": (1e16, 1e16 + 2)}, "allowed are"),
        ({"interval": 3}, "allowed are"),
        ({"interval": (1, 2, 3)}, "allowed are"),
    ],
)
def test_splines_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        katlib.SplineExplorer(**options)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("coefficients", [0.0] * 7, "need 8"),
        ("coefficients", [], "need 8"),
        ("grid", 6, "need 9"),
        ("order", 2, "need 7"),
        ("grid", 100, "grids 2 to 12"),
    ],
)
def test_a_spline_keeps_as_many_coefficients_as_it_needs(name, value, message):
    explorer = katlib.SplineExplorer()
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(explorer, name, value)


def test_grid_and_coefficients_of_a_spline_are_assigned_together():
    explorer = katlib.SplineExplorer()
    with explorer.hold_trait_notifications():
        explorer.grid = 6
        explorer.coefficients = torch.arange(9.0)
    assert explorer.grid == 6
    assert explorer.coefficients == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_spline_takes_a_tensor():
    explorer = katlib.SplineExplorer(torch.arange(8.0))
    assert explorer.coefficients == [0, 1, 2, 3, 4, 5, 6, 7]


# ---- what a page stores


def asks_for_something(text: str) -> bool:
    """Whether a figure's text loads anything; the name of SVG's namespace looks like an address."""
    text = text.replace("http://www.w3.org/2000/svg", "")
    return any(word in text for word in ("http://", "https://", "import(", "fetch("))


each_figure = pytest.mark.parametrize(
    "figure",
    [katlib.RationalExplorer, katlib.DenominatorExplorer, katlib.SplineExplorer],
    ids=lambda figure: figure.__name__,
)


@each_figure
def test_the_state_that_a_page_stores_is_small_and_whole(figure):
    state = figure().get_state()
    assert len(json.dumps(state)) < 45_000
    assert "export default { render }" in state["_esm"]
    assert ".katlib-live" in state["_css"]


@each_figure
def test_the_state_that_a_page_stores_asks_for_nothing(figure):
    assert not asks_for_something(json.dumps(figure().get_state()))


@each_figure
def test_a_figure_is_written_as_its_name(figure):
    assert repr(figure()) == f"{figure.__name__}()"


def test_the_figures_have_a_common_style():
    assert live.LiveFigure._css


# ---- TrainedExplorer


@pytest.fixture(scope="module")
def record():
    """Of an untrained KAT, and of the same one shaken, as a training run leaves it."""
    from katlib.book.recorder import Recorder

    torch.manual_seed(0)
    model = katlib.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=10, groups=4
    )
    recorder = Recorder(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    for epoch in range(3):
        recorder(model, {"epoch": epoch, "test_accuracy": 0.1 * epoch})
        with torch.no_grad():
            # of all groups, the last one of this function moves most
            model.blocks[1].mlp.act2.weight_denominator[3] += 0.2
            model.blocks[0].mlp.act1.weight_numerator[0, 2] += 0.01
    return recorder.record


def place(explorer) -> tuple:
    return explorer.block, explorer.function, explorer.group, explorer.epoch


def test_the_record_is_of_a_model_whose_last_group_moved_most(record):
    moved = {
        (name, group): distance
        for name, history in record["functions"].items()
        for group, distance in enumerate(history["moved"][-1])
    }
    assert max(moved, key=moved.get) == ("blocks.1.mlp.act2", 3)


def test_the_explorer_of_a_trained_kat_starts_where_most_has_moved(record):
    assert place(katlib.TrainedExplorer(record)) == (1, "act2", 3, 2)


def test_what_is_not_chosen_is_where_most_has_moved_within_the_choice(record):
    explorer = katlib.TrainedExplorer(record, block=0, epoch=-3)
    assert (explorer.block, explorer.function, explorer.epoch) == (0, "act1", 0)


def test_the_explorer_holds_its_record_as_json(record):
    assert json.loads(katlib.TrainedExplorer(record).record) == record


def test_the_explorer_of_a_trained_kat_is_written_as_its_name(record):
    assert repr(katlib.TrainedExplorer(record)) == "TrainedExplorer()"


def test_without_a_record_the_explorer_shows_the_books_trained_kat():
    from katlib.book.recorder import load_record

    assert json.loads(katlib.TrainedExplorer().record) == load_record()


def test_without_a_repository_there_is_no_record_to_show(monkeypatch, tmp_path):
    from katlib.widgets import trained

    monkeypatch.setattr(trained, "RECORD", tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        katlib.TrainedExplorer()


def test_the_explorer_of_a_trained_kat_is_driven_from_python(record):
    explorer, seen = katlib.TrainedExplorer(record), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])))
    explorer.block = 0
    explorer.function = "act1"
    explorer.group = 2
    explorer.epoch = 1
    assert seen == [("block", 0), ("function", "act1"), ("group", 2), ("epoch", 1)]


not_in_the_record = pytest.mark.parametrize(
    "key, value", [("block", 2), ("function", "act3"), ("group", 4), ("group", -1), ("epoch", 3)]
)


@not_in_the_record
def test_what_the_record_does_not_have_cannot_be_assigned(record, key, value):
    explorer = katlib.TrainedExplorer(record)
    with pytest.raises(traitlets.TraitError, match=f"{key}=.*; the record has"):
        setattr(explorer, key, value)


@not_in_the_record
def test_what_the_record_does_not_have_cannot_be_asked_for(record, key, value):
    with pytest.raises(traitlets.TraitError, match=f"{key}=.*; the record has"):
        katlib.TrainedExplorer(record, **{key: value})


def test_an_epoch_before_the_first_cannot_be_asked_for(record):
    with pytest.raises(traitlets.TraitError, match="epoch=-4; the record has 0, 1, 2"):
        katlib.TrainedExplorer(record, epoch=-4)


@pytest.mark.parametrize("missing", ["functions", "epochs", "blocks", "common group count"])
def test_a_record_that_cannot_be_shown_is_refused(record, missing):
    history = record["functions"]["blocks.0.mlp.act1"]
    two_groups = history | {"moved": [distances[:2] for distances in history["moved"]]}
    changes = {
        "functions": {"functions": {}},
        "epochs": {"epochs": []},
        "blocks": {"functions": {"act": history}},
        "common group count": {
            "functions": record["functions"] | {"blocks.0.mlp.act1": two_groups}
        },
    }[missing]
    with pytest.raises(ValueError, match="needed are"):
        katlib.TrainedExplorer(record | changes)


@pytest.mark.parametrize("bad", [[], "record", 3, {}, torch.ones(2)], ids=repr)
def test_what_is_no_record_is_refused(bad):
    with pytest.raises(ValueError, match="allowed is what a Recorder recorded"):
        katlib.TrainedExplorer(bad)


@pytest.mark.parametrize("key", ["interval", "bins", "unit", "epochs", "functions"])
@pytest.mark.parametrize("bad", [None, float("nan"), "x"], ids=repr)
def test_a_record_with_a_damaged_entry_is_refused(record, key, bad):
    with pytest.raises(ValueError, match=f"the record's {key} is"):
        katlib.TrainedExplorer(record | {key: bad})


@pytest.mark.parametrize("key", ["numerator", "denominator", "counts", "mean", "moved"])
@pytest.mark.parametrize("damage", ["absent", "short", "nan"])
def test_a_record_with_a_damaged_history_is_refused(record, key, damage):
    histories = json.loads(json.dumps(record["functions"]))
    history = histories["blocks.1.mlp.act2"]
    if damage == "absent":
        del history[key]
    elif damage == "short":
        del history[key][0]
    else:
        history[key][1][0] = float("nan")
    with pytest.raises(ValueError, match=rf"{key} of blocks\.1\.mlp\.act2 cannot be drawn"):
        katlib.TrainedExplorer(record | {"functions": histories})


def test_a_record_of_a_block_with_one_function_is_refused(record):
    functions = dict(record["functions"])
    del functions["blocks.1.mlp.act1"]
    with pytest.raises(ValueError, match="act1 and act2"):
        katlib.TrainedExplorer(record | {"functions": functions})


def test_a_metric_that_is_not_finite_is_left_out(record):
    epochs = [metrics | {"loss": float("nan")} for metrics in record["epochs"]]
    text = katlib.TrainedExplorer(record | {"epochs": epochs}).record
    assert json.loads(text, parse_constant=pytest.fail) == record


@pytest.mark.parametrize("epoch", ["1", 0.5, None])
def test_an_epoch_that_is_no_number_is_refused(record, epoch):
    with pytest.raises(traitlets.TraitError, match="epoch"):
        katlib.TrainedExplorer(record, epoch=epoch)


def test_the_state_of_a_trained_kats_explorer_is_its_record_and_little_more(record):
    state = katlib.TrainedExplorer(record).get_state()
    rest = {key: value for key, value in state.items() if key != "record"}
    assert len(json.dumps(rest)) < 60_000
    assert not asks_for_something(state["_esm"])


# ---- loading


def test_importing_katlib_does_not_load_ipywidgets():
    code = (
        "import sys, katlib; assert 'ipywidgets' not in sys.modules; "
        "katlib.SplineExplorer; assert 'ipywidgets' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_katlib_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchExplorer"):
        _ = katlib.NoSuchExplorer
