"""What the book's pages are made with: drawings, tables and stored runs."""

import doctest
import importlib
import itertools
import re

import pytest
import torch

import katlib
from katlib.book import plot, tables
from katlib.book.device import say_device
from katlib.book.html import Html, table
from katlib.book.results import stored_runs
from katlib.book.statistics import compare

MODULES = ("cost", "device", "html", "plot", "recorder", "results", "statistics", "tables")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_give_what_they_say(name):
    module = importlib.import_module(f"katlib.book.{name}")
    result = doctest.testmod(module, extraglobs={"katlib": katlib, "torch": torch})
    assert result.failed == 0


# ---- HTML


def test_a_table_has_a_line_for_each_row_and_escapes_its_cells():
    shown = table([1, 2], {"a <b>": lambda row: f"<{row}>"}, "c & d")._repr_html_()
    assert "<th>a &lt;b&gt;</th>" in shown
    assert "<td>&lt;1&gt;</td>" in shown
    assert "<caption>c &amp; d</caption>" in shown
    assert shown.count("<tr>") == 3


def test_html_shows_nothing_where_there_is_only_text():
    assert repr(Html("<b>bold</b>")) == ""


# ---- stored runs


def test_runs_are_chosen_by_their_entries():
    runs = stored_runs(mlp="mlp", seed=0)
    assert runs
    assert {(run["mlp"], run["seed"]) for run in runs} == {("mlp", 0)}


def test_an_entry_that_no_run_has_chooses_none():
    assert stored_runs(no_such_entry=1) == []


def test_without_the_books_repository_there_are_no_stored_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="come with the book's repository"):
        stored_runs(tmp_path / "results")


# ---- tables


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_made_from_stored_results(name):
    shown = tables.TABLES[name]().text
    assert shown.count("<tr>") > 1
    assert not re.search(r"<th></th>|>None<|>nan<", shown)


def test_a_caption_ends_with_where_and_when():
    record = {
        "device_name": "a processor",
        "torch": "2.11.0",
        "commit": "0123456789ab",
        "date": "2026-11-24",
    }
    expected = "a processor, torch 2.11.0, commit 0123456, 2026-11-24."
    assert tables.provenance_text(record) == expected


@pytest.mark.parametrize("fraction, text", [(0.01234, "+1.23"), (-0.5, "−50.00")])
def test_percentage_points_have_a_sign(fraction, text):
    assert tables.percentage_points(fraction) == text


# ---- the device


def test_a_machine_without_a_gpu_is_told_what_it_would_do_with_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    say_device("all images", "2,500 images")
    expected = "No GPU, 1 CPU thread: 2,500 images. With a GPU: all images.\n"
    assert capsys.readouterr().out == expected


# ---- drawings


def texts(ax) -> dict[str, tuple[float, float]]:
    """The labels in a drawing and where they point to."""
    return {text.get_text(): text.xy for text in ax.texts}


@pytest.fixture
def ax_and_line():
    _, ax = plot.new_figure()
    (line,) = ax.plot([0.0, 1.0, 2.0], [5.0, 6.0, 4.0])
    return ax, line


def test_a_line_is_labelled_at_its_right_end(ax_and_line):
    plot.label_line(*ax_and_line, "line")
    assert texts(ax_and_line[0]) == {"line": (2.0, 4.0)}


def test_a_line_is_labelled_where_one_asks_for_it(ax_and_line):
    plot.label_line(*ax_and_line, "line", at=0.9)
    assert texts(ax_and_line[0]) == {"line": (1.0, 6.0)}


def test_labels_at_the_ends_keep_their_order_and_a_distance():
    _, ax = plot.new_figure()
    heights = {"low": 0.0, "middle": 0.01, "high": 0.02, "top": 1.0}
    lines = {label: ax.plot([0, 1], [0, y])[0] for label, y in heights.items()}
    plot.label_ends(ax, lines)
    positions = [texts(ax)[label][1] for label in heights]
    steps = [after - before for before, after in itertools.pairwise(positions)]
    assert min(steps) >= plot.LABEL_DISTANCE - 1e-9


def test_a_label_stands_at_the_last_finite_value():
    fig = plot.functions([1.0, 2.0, 3.0], {"a": [0.0, 1.0, float("nan")], "b": [0.0, 0.0, 0.0]})
    ax = fig.axes[0]
    (left, _), (right, _) = texts(ax)["a"], texts(ax)["b"]
    assert left < right


def test_a_curve_is_dashed_if_its_label_says_so():
    fig = plot.functions([0.0, 1.0], {"a": [0.0, 1.0], "b": [0.0, 2.0]}, dashed=("b",))
    assert [line.get_linestyle() for line in fig.axes[0].lines] == ["-", "--"]


def test_the_legend_of_learning_curves_has_each_model_once():
    epochs = [{"epoch": 1, "test_accuracy": 0.5}, {"epoch": 2, "test_accuracy": 0.6}]
    runs = [{"mlp": mlp, "epochs": epochs} for mlp in ("grkan", "mlp", "grkan")]
    legend = plot.learning_curves(runs).axes[0].get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == ["KAT", "MLP twin"]


def test_a_quantity_that_is_no_accuracy_is_not_in_percent():
    runs = [{"mlp": "mlp", "epochs": [{"epoch": 1, "test_loss": 1.0}]}]
    ax = plot.learning_curves(runs, "test_loss").axes[0]
    assert ax.get_ylabel() == "test loss"
    assert "%" not in ax.yaxis.get_major_formatter()(1.0, 0)


def learned(blocks: int) -> dict[str, dict]:
    """Functions whose first coefficient is the number of their block."""
    return {
        f"blocks.{block}.mlp.{function}": {
            "numerator": [[float(block), 1.0, 0.0, 0.0, 0.0, 0.0]],
            "denominator": [[0.0, 0.0, 0.0, 0.0]] * 2,
        }
        for block in range(blocks)
        for function in ("act1", "act2")
    }


def test_the_blocks_of_a_deep_model_are_drawn_in_their_order():
    fig = plot.activations(learned(11), span=1.0)
    for number, ax in enumerate(fig.axes[:11]):
        # the middle of 201 places is x = 0
        assert ax.lines[0].get_ydata()[100] == pytest.approx(number, abs=1e-9)
        assert ax.get_title() == f"block {number}"


def test_the_picture_of_the_readme_is_an_svg(tmp_path):
    path = tmp_path / "picture.svg"
    plot.picture(path, {"activations": learned(1)})
    assert "<svg" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.svg"]


def accuracies(condition: str, *values: float) -> list[dict]:
    return [
        dict(condition=condition, title=condition, seed=seed, parameters=1, test_accuracy=value)
        for seed, value in enumerate(values)
    ]


def test_differences_are_drawn_for_all_conditions_but_the_baseline():
    runs = accuracies("kat", 0.5, 0.51, 0.52)
    runs += accuracies("better", 0.601, 0.611, 0.62) + accuracies("as good", 0.52, 0.5, 0.52)
    ax = plot.differences(compare(runs)).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["better", "as good"]


def test_a_difference_is_coloured_if_its_interval_leaves_out_0():
    runs = accuracies("kat", 0.5, 0.51, 0.52)
    runs += accuracies("better", 0.601, 0.611, 0.62) + accuracies("as good", 0.52, 0.5, 0.52)
    ax = plot.differences(compare(runs)).axes[0]
    # three lines of a drawing belong to one condition; the first is its interval
    assert ax.lines[0].get_color() == plot.VERMILION
    assert ax.lines[3].get_color() == plot.BLACK
