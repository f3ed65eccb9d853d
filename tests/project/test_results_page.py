"""The results page of the built book: every number in its tables is computed again here from `results/*.json`, by other code than the page's."""

import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "_build" / "html" / "book" / "results.html"
RESULTS = ROOT / "results"
T975 = {
    1: 12.7062,
    2: 4.30265,
    3: 3.18245,
    4: 2.77645,
}  # Student's t: 97.5% lie below, by degrees of freedom


class Tables(HTMLParser):
    """{name: rows of cells} of the tables that carry data-results."""

    def __init__(self):
        super().__init__()
        self.tables, self.name, self.cell = {}, None, None

    def handle_starttag(self, tag, attributes):
        name = dict(attributes).get("data-results")
        if tag == "table" and name:
            self.name, self.tables[name] = name, []
        elif self.name and tag == "tr":
            self.tables[self.name].append([])
        elif self.name and tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.tables[self.name][-1].append(self.cell)
            self.cell = None
        elif tag == "table":
            self.name = None


@pytest.fixture(scope="module")
def tables():
    if not PAGE.exists():
        pytest.skip("the book is not built; `make test` builds it first")
    parser = Tables()
    parser.feed(PAGE.read_text())
    return parser.tables


def records(name):
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(name))]


def numbers(text):
    """The numbers in a cell, in their order."""
    return [
        float(t.replace(",", ""))
        for t in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", text.replace("−", "-"))
    ]


def check(cell, *expected, digits):
    got = numbers(cell)
    assert len(got) == len(expected), (cell, expected)
    for value, exact in zip(got, expected):
        assert abs(value - exact) <= 0.5000001 * 10**-digits, (cell, expected)


@pytest.mark.parametrize("part, conditions", [("study", 18), ("study-again", 4)])
def test_the_study(tables, part, conditions):
    by_condition = {}
    for run in records(f"{part}/*.json"):
        by_condition.setdefault(run["title"], {})[run["seed"]] = run
    head, *rows = tables[part]
    assert len(rows) == conditions
    assert (
        {row[0] for row in rows} == set(by_condition)
        and rows[0][0] == "KAT"
        and len(rows) == len(by_condition)
    )
    for title, parameters, seeds, accuracy, difference, interval, p in rows:
        runs = by_condition[title]
        values = [100 * run["test_accuracy"] for run in runs.values()]
        check(parameters, next(iter(runs.values()))["parameters"], digits=0)
        check(seeds, len(values), digits=0)
        check(accuracy, statistics.mean(values), statistics.stdev(values), digits=2)
        if title == "KAT":
            assert difference == interval == p == ""
            continue
        differences = [
            100 * (runs[s]["test_accuracy"] - by_condition["KAT"][s]["test_accuracy"])
            for s in runs
            if s in by_condition["KAT"]
        ]
        mean, std, n = statistics.mean(differences), statistics.stdev(differences), len(differences)
        check(difference, mean, std, digits=2)
        half = T975[n - 1] * std / math.sqrt(n)
        check(interval, mean - half, mean + half, digits=2)
        t = abs(mean) / (std / math.sqrt(n))
        exact = {
            3: 1 - t / math.sqrt(t * t + 2),
            5: 1 - t / math.sqrt(t * t + 4) * (1 + 2 / (t * t + 4)),
        }[n]  # 2 and 4 degrees of freedom
        check(p, exact, digits=3)


def test_the_runs(tables):
    head, *rows = tables["runs"]
    runs = {
        (run["mlp"], run["seed"], len(run["epochs"])): run
        for run in records("*.json")
        if "test_accuracy" in run
    }
    assert len(rows) == len(runs)
    for row in rows:
        cell = dict(zip(head, row))
        run = runs[
            {"KAT": "grkan", "MLP twin": "mlp"}[cell["model"]],
            int(cell["seed"]),
            int(cell["epochs"]),
        ]
        check(cell["parameters"], run["parameters"], digits=0)
        check(cell["training images"], run["config"]["train_images"], digits=0)
        check(cell["test accuracy"].rstrip("%"), 100 * run["test_accuracy"], digits=2)
        check(cell["test loss"], run["epochs"][-1]["test_loss"], digits=3)
        check(cell["learning rate"], run["config"]["lr"], digits=9)
        assert (cell["device"], cell["date"]) == (run["device_name"], run["date"])


def test_the_costs(tables):
    record, (head, *rows) = records("study-cost-cpu.json")[0], tables["study-cost"]
    assert len(rows) == len(record["rows"])
    for (title, ms, ratio, kept), row in zip(rows, record["rows"]):
        assert title == row["title"]
        check(ms, *(row["ms"][q] for q in ("p20", "p50", "p80")), digits=1)
        check(ratio, row["ratio_to_mlp"], digits=2)
        check(kept, row["kept_bytes"] / 1024**2, digits=1)


def test_the_learning_rates(tables):
    head, *rows = tables["learning-rates"]
    record = records("study-lr.json")[0]
    found = {
        ({"grkan": "KAT", "mlp": "MLP twin"}[row["mlp"]], row["lr"]): row["accuracy"]
        for row in record["rows"]
    }
    assert len(rows) == len(found) == 8
    for model, rate, accuracy in rows:
        check(accuracy, 100 * found[model, float(rate)], digits=2)


def test_the_kernel_and_the_training_step(tables):
    record, (head, *rows) = records("kernel-cpu.json")[0], tables["kernel"]
    assert len(rows) == len(record["rows"])
    for (shape, dtype, ms, rate, share, ratio, reference, error), row in zip(rows, record["rows"]):
        way = row["ways"]["katlib"]
        assert numbers(shape) == row["shape"] and dtype == row["dtype"]
        check(ms, *(way["ms"][q] for q in ("p20", "p50", "p80")), digits=3)
        check(rate, way["GB_per_s"], digits=1)
        check(share.rstrip("%"), 100 * way["share_of_copy"], digits=0)
        check(ratio, way["ratio_to_gelu"], digits=2)
        check(reference, row["ways"]["reference"]["ratio_to_gelu"], digits=1)
        assert float(error) == pytest.approx(max(row["error"].values()), rel=0.06)
    record, (head, *rows) = records("model-cpu.json")[0], tables["model"]
    for (name, batch, kat, vit, ratio), row in zip(rows, record["rows"], strict=True):
        check(kat, *(row["ms"]["KAT"][q] for q in ("p20", "p50", "p80")), digits=1)
        check(vit, *(row["ms"]["ViT"][q] for q in ("p20", "p50", "p80")), digits=1)
        check(ratio, row["ratio"], digits=3)


def test_larger_models_and_two_processes(tables):
    rows = records("scale-cpu.json")[0]["rows"]
    measured = [row for row in rows if row["kind"] == "step"]
    for (name, batch, kat, vit, ratio, kat_peak, vit_peak), row in zip(
        tables["scale-steps"][1:], measured, strict=True
    ):
        assert (name, int(batch)) == (row["model"], row["batch"])
        check(kat, *(row["ms"]["KAT"][q] for q in ("p20", "p50", "p80")), digits=1)
        check(vit, *(row["ms"]["ViT"][q] for q in ("p20", "p50", "p80")), digits=1)
        check(ratio, row["ratio"], digits=3)
        check(kat_peak, row["peak_bytes"]["KAT"] / 1e6, digits=0)
        check(vit_peak, row["peak_bytes"]["ViT"] / 1e6, digits=0)
    parallel = [row for row in rows if row["kind"] == "parallel"]
    for (name, images, size, *times, efficiency), row in zip(
        tables["scale-parallel"][1:], parallel, strict=True
    ):
        assert (name, int(images)) == ("KAT-" + row["model"], row["batch_of_each"])
        check(size, row["gradient_bytes"] / 1e6, digits=1)
        for time, way in zip(times, ("alone", "beside", "sum", "together"), strict=True):
            check(time, row["ms"][way]["p50"], digits=1)
        check(efficiency.rstrip("%"), 100 * row["efficiency"], digits=0)


@pytest.fixture(scope="module")
def field_tables():
    page = PAGE.with_name("in_the_field.html")
    if not page.exists():
        pytest.skip("the book is not built; `make test` builds it first")
    parser = Tables()
    parser.feed(page.read_text())
    return parser.tables


@pytest.mark.parametrize(
    "name, kind, kinds, measure, scale, digits",
    [
        ("convnet", "activation", ("relu", "gelu", "rational"), "accuracy", 100, 2),
        ("gpt", "mlp", ("mlp", "grkan"), "loss", 1, 4),
    ],
)
def test_the_examples(field_tables, name, kind, kinds, measure, scale, digits):
    record, (head, *rows) = records(f"example-{name}.json")[0], field_tables[name]
    by_seed = [
        {row["seed"]: scale * row[measure] for row in record["rows"] if row[kind] == k}
        for k in kinds
    ]
    for (model, parameters, seeds, value, difference), k, values in zip(
        rows, kinds, by_seed, strict=True
    ):
        check(
            parameters,
            next(row["parameters"] for row in record["rows"] if row[kind] == k),
            digits=0,
        )
        check(seeds, len(values), digits=0)
        check(
            value,
            statistics.mean(values.values()),
            statistics.stdev(values.values()),
            digits=digits,
        )
        differences = [values[seed] - by_seed[0][seed] for seed in values]
        if k != kinds[0]:
            check(
                difference,
                statistics.mean(differences),
                statistics.stdev(differences),
                digits=digits,
            )


def test_inference(field_tables):
    record, (head, *rows) = records("inference-cpu.json")[0], field_tables["inference"]
    assert len(rows) == 3 * len(record["rows"])
    for model, batch, by, kat, vit, ratio in rows:
        row = next(
            row for row in record["rows"] if (row["model"], str(row["batch"])) == (model, batch)
        )
        how = {"PyTorch": "", "torch.compile": " compiled", "onnxruntime": " onnxruntime"}[by]
        check(kat, *(row["ms"][f"KAT{how}"][q] for q in ("p20", "p50", "p80")), digits=2)
        check(vit, *(row["ms"][f"ViT{how}"][q] for q in ("p20", "p50", "p80")), digits=2)
        check(ratio, row["ratio"][how.strip() or "eager"], digits=2)
