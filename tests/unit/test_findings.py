"""The numbers in the pages' sentences: each is computed here again, in another way."""

import json
import math
import re
import statistics

import pytest

from katlib.book.findings import FINDINGS, listed, span
from katlib.book.results import FOLDER

# Student's t below which 97.5% lie, for 4 degrees of freedom
T975 = 2.77645


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text.replace("−", "-"))]


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_is_a_line_of_text_with_a_number(name):
    text = FINDINGS[name]()
    assert numbers(text)
    assert "nan" not in text


def test_a_span_of_equal_values_is_one_number():
    assert span([1.234, 1.226]) == "1.23"
    assert span([2.0, 1.0, 1.5], 1) == "1.0 to 2.0"


def test_differences_are_listed_with_their_signs():
    assert listed([1.04, -2.0, 0.5]) == "+1.0, −2.0 and +0.5"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lead over ViT", [1.9, 2.4, 3.2]),
        ("lead over DeiT", [2.4, 1.4, 0.5]),
        ("released kernels", [102, 124]),
        ("FlashKAT", [1.36, 1.42]),
    ],
)
def test_what_papers_report(name, expected):
    assert numbers(FINDINGS[name]()) == expected


@pytest.mark.parametrize(
    "name, file, key, better, worse, measure, scale, digits",
    [
        ("ConvNet", "convnet", "activation", "rational", "gelu", "accuracy", 100, 2),
        ("GPT", "gpt", "mlp", "grkan", "mlp", "loss", 1, 4),
    ],
)
def test_the_leads_of_the_examples(name, file, key, better, worse, measure, scale, digits):
    rows = record(f"example-{file}")["rows"]
    values = {(row[key], row["seed"]): scale * row[measure] for row in rows}
    differences = [values[better, seed] - values[worse, seed] for seed in range(5)]
    mean = statistics.mean(differences)
    half = T975 * statistics.stdev(differences) / math.sqrt(5)
    shown = numbers(FINDINGS[name]().replace("95%", ""))
    assert shown == pytest.approx([mean, mean - half, mean + half, 5], abs=0.51 * 10**-digits)


def test_the_compact_model():
    run = record("cifar-compact-grkan-seed0")
    assert numbers(FINDINGS["compact KAT"]()) == [round(100 * run["test_accuracy"], 2)]
    assert int(FINDINGS["compact parameters"]().replace(",", "")) == run["parameters"]
    assert numbers(FINDINGS["compact epochs"]()) == [len(run["epochs"])]


def test_the_steps_and_their_memory():
    rows = [row for row in record("scale-cpu")["rows"] if row["kind"] == "step"]
    times = [row["ratio"] for row in [*rows, *record("model-cpu")["rows"]]]
    peaks = [row["peak_bytes"]["KAT"] / row["peak_bytes"]["ViT"] for row in rows]
    for name, ratios in {"training step": times, "peak memory": peaks}.items():
        assert numbers(FINDINGS[name]()) == [round(min(ratios), 2), round(max(ratios), 2)]


@pytest.mark.parametrize("way, digits", [("eager", 2), ("compiled", 2), ("onnxruntime", 1)])
def test_inference(way, digits):
    ratios = [round(row["ratio"][way], digits) for row in record("inference-cpu")["rows"]]
    assert numbers(FINDINGS[f"{way} inference"]()) == sorted({min(ratios), max(ratios)})
