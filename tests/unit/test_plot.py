"""The book's figures: captions and alt texts, the same bytes every time, and readable axes."""

import re

import pytest

from katlib.book import plot


@pytest.fixture
def drawing():
    return plot.functions([0.0, 1.0], {"line": [0.0, 1.0]})


def test_a_drawing_is_the_same_every_time(drawing):
    again = plot.functions([0.0, 1.0], {"line": [0.0, 1.0]})
    assert plot.svg(drawing) == plot.svg(again)


def test_the_caption_and_the_alt_text_are_escaped(drawing):
    shown = plot.figure(drawing, "a <line>", 'a "line"')._repr_html_()
    assert "a &lt;line&gt;" in shown
    assert 'alt="a &quot;line&quot;"' in shown


@pytest.mark.parametrize("caption, alt", [("", "x"), ("x", " ")])
def test_a_figure_asks_for_a_caption_and_an_alt_text(drawing, caption, alt):
    with pytest.raises(ValueError, match="caption"):
        plot.figure(drawing, caption, alt)


def test_the_ticks_of_an_accuracy_are_percentages_of_where_they_stand():
    accuracies = [{"epoch": i, "test_accuracy": a} for i, a in enumerate((0.34, 0.52))]
    fig = plot.learning_curves([{"mlp": "grkan", "epochs": accuracies}])
    plot.svg(fig)  # lays the axes out
    ticks = fig.axes[0].get_yticks()
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert len(ticks) > 3
    assert [float(label.rstrip("%")) / 100 for label in labels] == pytest.approx(ticks)


def test_the_ticks_of_a_short_logarithmic_axis_are_plain_numbers():
    fig = plot.functions([0.2, 100.0], {"speed": [15.0, 70.0]}, xscale="log", yscale="log")
    plot.svg(fig)
    axis = fig.axes[0].yaxis
    labels = [*axis.get_ticklabels(minor=True), *axis.get_ticklabels()]
    shown = [label.get_text() for label in labels if label.get_text()]
    assert {"20", "30"} <= set(shown)
    assert all(re.fullmatch(r"[\d.]+", text) for text in shown)
