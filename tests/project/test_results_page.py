"""The tables of the built book: every number is computed again here from `results/*.json`.

The code here is not the one that the pages are made with.
"""

import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.book

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "_build" / "html" / "book"
RESULTS = ROOT / "results"

# Student's t below which 97.5% lie, by degrees of freedom
T975 = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}

MODELS = {"grkan": "KAT", "mlp": "MLP twin"}


class Tables(HTMLParser):
    """{name: rows of cells} of the tables that carry data-results."""

    def __init__(self):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.name: str | None = None
        self.cell: str | None = None

    def handle_starttag(self, tag, attributes):
        name = dict(attributes).get("data-results")
        if tag == "table" and name:
            self.name = name
            self.tables[name] = []
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


def tables_of(page: str) -> dict[str, list[dict[str, str]]]:
    """{name: lines} of a built page, each line as {heading: cell}."""
    path = PAGES / f"{page}.html"
    if not path.exists():
        pytest.skip("the book is not built; `make test` builds it first")
    parser = Tables()
    parser.feed(path.read_text())
    return {
        name: [dict(zip(headings, line, strict=True)) for line in lines]
        for name, (headings, *lines) in parser.tables.items()
    }


@pytest.fixture(scope="module")
def tables():
    return tables_of("results")


@pytest.fixture(scope="module")
def field_tables():
    return tables_of("in_the_field")


def record(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def runs(folder: str = ".") -> list[dict]:
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]
    return [found for found in records if "test_accuracy" in found]


def numbers(text: str) -> list[float]:
    """The numbers in a cell, in their order."""
    found = re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", text.replace("−", "-"))
    return [float(number.replace(",", "")) for number in found]


def check(cell: str, *expected: float, digits: int) -> None:
    """Asserts that the cell holds these numbers, rounded to so many decimal places."""
    shown = numbers(cell)
    assert len(shown) == len(expected), (cell, expected)
    for value, exact in zip(shown, expected):
        assert abs(value - exact) <= 0.5000001 * 10**-digits, (cell, expected)


def percentiles(milliseconds: dict) -> list[float]:
    return [milliseconds[name] for name in ("p20", "p50", "p80")]


# ---- the study


def by_title(part: str) -> dict[str, dict[int, dict]]:
    """The stored runs of a part of the study, by condition and by seed."""
    found: dict[str, dict[int, dict]] = {}
    for run in runs(part):
        found.setdefault(run["title"], {})[run["seed"]] = run
    return found


def differences_to_the_kat(part: str, title: str) -> list[float]:
    """In percentage points, of the seeds that both have."""
    conditions = by_title(part)
    kat = conditions["KAT"]
    return [
        100 * (run["test_accuracy"] - kat[seed]["test_accuracy"])
        for seed, run in conditions[title].items()
        if seed in kat
    ]


both_parts = pytest.mark.parametrize("part", ["study", "study-again"])


@pytest.mark.parametrize("part, conditions", [("study", 18), ("study-again", 4)])
def test_the_study_shows_every_condition_once_and_the_kat_first(tables, part, conditions):
    shown = [line["condition"] for line in tables[part]]
    assert shown[0] == "KAT"
    assert len(shown) == conditions
    assert sorted(shown) == sorted(by_title(part))


@both_parts
def test_the_study_shows_the_size_and_the_seeds_of_a_condition(tables, part):
    for line in tables[part]:
        found = by_title(part)[line["condition"]]
        check(line["parameters"], next(iter(found.values()))["parameters"], digits=0)
        check(line["seeds"], len(found), digits=0)


@both_parts
def test_the_study_shows_the_mean_accuracy_and_its_deviation(tables, part):
    for line in tables[part]:
        found = by_title(part)[line["condition"]]
        values = [100 * run["test_accuracy"] for run in found.values()]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        check(line["test accuracy, %"], mean, deviation, digits=2)


@both_parts
def test_the_study_shows_no_difference_of_the_kat_to_itself(tables, part):
    kat = tables[part][0]
    assert kat["difference, points"] == kat["95% interval"] == kat["p"] == ""


@both_parts
def test_the_study_shows_the_mean_difference_and_its_interval(tables, part):
    for line in tables[part][1:]:
        differences = differences_to_the_kat(part, line["condition"])
        mean, deviation = statistics.mean(differences), statistics.stdev(differences)
        half_width = T975[len(differences) - 1] * deviation / math.sqrt(len(differences))
        check(line["difference, points"], mean, deviation, digits=2)
        check(line["95% interval"], mean - half_width, mean + half_width, digits=2)


def two_sided_p(t: float, degrees_of_freedom: int) -> float:
    """Of Student's t, which has a closed form for an even number of degrees of freedom."""
    if degrees_of_freedom == 2:
        return 1 - t / math.sqrt(t * t + 2)
    assert degrees_of_freedom == 4
    return 1 - t / math.sqrt(t * t + 4) * (1 + 2 / (t * t + 4))


@both_parts
def test_the_study_shows_p_of_the_paired_test(tables, part):
    for line in tables[part][1:]:
        differences = differences_to_the_kat(part, line["condition"])
        standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
        t = abs(statistics.mean(differences)) / standard_error
        check(line["p"], two_sided_p(t, len(differences) - 1), digits=3)


def test_the_costs(tables):
    for line, row in zip(tables["study-cost"], record("study-cost-cpu")["rows"], strict=True):
        assert line["condition"] == row["title"]
        check(line["ms a step (p20, p50, p80)"], *percentiles(row["ms"]), digits=1)
        check(line["in units of the twin's"], row["ratio_to_mlp"], digits=2)
        check(line["kept for backward, MiB"], row["kept_bytes"] / 1024**2, digits=1)


def test_the_learning_rates(tables):
    found = {(MODELS[row["mlp"]], row["lr"]): row["accuracy"] for row in record("study-lr")["rows"]}
    assert len(tables["learning-rates"]) == len(found) == 8
    for line in tables["learning-rates"]:
        accuracy = found[line["model"], float(line["peak learning rate"])]
        check(line["accuracy, %"], 100 * accuracy, digits=2)


# ---- the runs on all of CIFAR-10


@pytest.fixture
def runs_with_lines(tables) -> list[tuple[dict, dict]]:
    """Every run beside its line of the table."""
    lines = {
        (line["model"], int(line["seed"]), int(line["epochs"])): line for line in tables["runs"]
    }
    assert len(lines) == len(tables["runs"]) == len(runs())
    return [(run, lines[MODELS[run["mlp"]], run["seed"], len(run["epochs"])]) for run in runs()]


def test_the_runs_show_what_was_trained(runs_with_lines):
    for run, line in runs_with_lines:
        check(line["parameters"], run["parameters"], digits=0)
        check(line["training images"], run["config"]["train_images"], digits=0)
        check(line["learning rate"], run["config"]["lr"], digits=9)


def test_the_runs_show_how_well_it_does(runs_with_lines):
    for run, line in runs_with_lines:
        check(line["test accuracy"].rstrip("%"), 100 * run["test_accuracy"], digits=2)
        check(line["test loss"], run["epochs"][-1]["test_loss"], digits=3)


def test_the_runs_show_where_and_when(runs_with_lines):
    for run, line in runs_with_lines:
        assert (line["device"], line["date"]) == (run["device_name"], run["date"])


# ---- speed


@pytest.fixture
def kernel_with_lines(tables) -> list[tuple[dict, dict]]:
    return list(zip(record("kernel-cpu")["rows"], tables["kernel"], strict=True))


def test_the_kernel_shows_what_was_measured(kernel_with_lines):
    for row, line in kernel_with_lines:
        assert numbers(line["shape"]) == row["shape"]
        assert line["dtype"] == row["dtype"]


def test_the_kernel_shows_its_time_and_rate(kernel_with_lines):
    for row, line in kernel_with_lines:
        ours = row["ways"]["katlib"]
        check(line["ms (p20, p50, p80)"], *percentiles(ours["ms"]), digits=3)
        check(line["GB/s"], ours["GB_per_s"], digits=1)
        check(line["share of a copy"].rstrip("%"), 100 * ours["share_of_copy"], digits=0)


def test_the_kernel_shows_what_others_take(kernel_with_lines):
    for row, line in kernel_with_lines:
        ways = row["ways"]
        check(line["in units of F.gelu"], ways["katlib"]["ratio_to_gelu"], digits=2)
        check(line["eager reference"], ways["reference"]["ratio_to_gelu"], digits=1)


def test_the_kernel_shows_its_error(kernel_with_lines):
    for row, line in kernel_with_lines:
        assert float(line["largest error"]) == pytest.approx(max(row["error"].values()), rel=0.06)


def check_step(line: dict, row: dict) -> None:
    """The columns of a training step."""
    check(line["KAT, ms (p20, p50, p80)"], *percentiles(row["ms"]["KAT"]), digits=1)
    check(line["ViT, ms (p20, p50, p80)"], *percentiles(row["ms"]["ViT"]), digits=1)
    check(line["KAT / ViT"], row["ratio"], digits=3)


def test_the_training_step(tables):
    for line, row in zip(tables["model"], record("model-cpu")["rows"], strict=True):
        check_step(line, row)


def scale_rows(kind: str) -> list[dict]:
    return [row for row in record("scale-cpu")["rows"] if row["kind"] == kind]


def test_larger_models(tables):
    for line, row in zip(tables["scale-steps"], scale_rows("step"), strict=True):
        assert (line["model"], int(line["batch"])) == (row["model"], row["batch"])
        check_step(line, row)
        check(line["KAT, peak MB"], row["peak_bytes"]["KAT"] / 1e6, digits=0)
        check(line["ViT, peak MB"], row["peak_bytes"]["ViT"] / 1e6, digits=0)


@pytest.fixture
def parallel_with_lines(tables) -> list[tuple[dict, dict]]:
    return list(zip(scale_rows("parallel"), tables["scale-parallel"], strict=True))


def test_two_processes_show_what_was_measured(parallel_with_lines):
    for row, line in parallel_with_lines:
        assert line["model"] == "KAT-" + row["model"]
        assert int(line["images each"]) == row["batch_of_each"]
        check(line["gradients, MB"], row["gradient_bytes"] / 1e6, digits=1)


@pytest.mark.parametrize(
    "heading, way",
    [
        ("alone, ms", "alone"),
        ("two beside each other, ms", "beside"),
        ("the sum, ms", "sum"),
        ("together, ms", "together"),
    ],
)
def test_two_processes_show_their_times(parallel_with_lines, heading, way):
    for row, line in parallel_with_lines:
        check(line[heading], row["ms"][way]["p50"], digits=1)


def test_two_processes_show_their_efficiency(parallel_with_lines):
    for row, line in parallel_with_lines:
        check(line["efficiency"].rstrip("%"), 100 * row["efficiency"], digits=0)


@pytest.mark.parametrize(
    "way, suffix",
    [("PyTorch", ""), ("torch.compile", " compiled"), ("onnxruntime", " onnxruntime")],
)
def test_inference(field_tables, way, suffix):
    lines = [line for line in field_tables["inference"] if line["by"] == way]
    rows = {(row["model"], str(row["batch"])): row for row in record("inference-cpu")["rows"]}
    assert len(lines) == len(rows)
    for line in lines:
        row = rows[line["model"], line["batch"]]
        kat, vit = row["ms"][f"KAT{suffix}"], row["ms"][f"ViT{suffix}"]
        check(line["KAT, ms (p20, p50, p80)"], *percentiles(kat), digits=2)
        check(line["ViT, ms (p20, p50, p80)"], *percentiles(vit), digits=2)
        check(line["KAT / ViT"], row["ratio"][suffix.strip() or "eager"], digits=2)


def test_inference_has_three_ways(field_tables):
    assert len(field_tables["inference"]) == 3 * len(record("inference-cpu")["rows"])


# ---- the examples

each_example = pytest.mark.parametrize(
    "name, variant_key, variants, measure, scale, digits",
    [
        ("convnet", "activation", ("relu", "gelu", "rational"), "accuracy", 100, 2),
        ("gpt", "mlp", ("mlp", "grkan"), "loss", 1, 4),
    ],
)


@each_example
def test_the_examples(field_tables, name, variant_key, variants, measure, scale, digits):
    first: dict[int, float] = {}
    for line, variant in zip(field_tables[name], variants, strict=True):
        rows = [row for row in record(f"example-{name}")["rows"] if row[variant_key] == variant]
        values = {row["seed"]: scale * row[measure] for row in rows}
        first = first or values
        _, parameters, seeds, value, difference = line.values()
        check(parameters, rows[0]["parameters"], digits=0)
        check(seeds, len(values), digits=0)
        check(value, *mean_and_deviation(list(values.values())), digits=digits)
        if values != first:
            differences = [values[seed] - first[seed] for seed in values]
            check(difference, *mean_and_deviation(differences), digits=digits)


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values)
