"""What a run leaves behind: where it was made, what it measured, and the tables that the book makes from `results/*.json`."""

import json
import math
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Callable

import torch
from torch import nn

from katlib.rational import GroupRational

FOLDER = Path(__file__).resolve().parent.parent / "results"         # of the repository; an installed package has none


@dataclass
class Html:
    """Text that a notebook shows as HTML."""

    text: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return ""


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.get_num_threads()} threads"


def say_device(with_gpu: str, without: str) -> None:
    """Prints in one line which device was found and what a notebook does on it: `with_gpu` on a GPU, `without` on a processor."""
    if torch.cuda.is_available():
        return print(f"{torch.cuda.get_device_name()}: {with_gpu}.")
    threads = torch.get_num_threads()
    print(f"No GPU, {threads} CPU thread{'s' * (threads > 1)}: {without}. With a GPU: {with_gpu}.")


def git_commit() -> str:
    """The commit that this package was run from; "+" marks changes that are not committed, other than in `results`. Without git: $KATLIB_COMMIT or "unknown"."""
    if not (FOLDER.parent / ".git").exists():
        return os.environ.get("KATLIB_COMMIT", "unknown")

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ":/", ":(top,exclude)results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def learned_activations(model: nn.Module) -> dict[str, dict]:
    """The coefficients of every `GroupRational` of the model, as lists under its name."""
    return {name: {"numerator": m.weight_numerator.tolist(), "denominator": m.weight_denominator.tolist()}
            for name, m in model.named_modules() if isinstance(m, GroupRational)}


def write_json(path: Path, record: dict) -> None:
    """Writes `record` to a file of another name and renames it: under its own name it is whole or absent."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(record) + "\n")
    temporary.replace(path)


def stored_runs(folder: Path = FOLDER, **conditions) -> list[dict]:
    """The runs in `folder` whose entries equal `conditions`, for example `mlp="grkan"`, by file name.

    Raises:
        FileNotFoundError: there is no such folder; the stored runs are part of the book's repository, not of the package.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: the stored runs come with the book's repository, not with the package")
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [run for run in runs if "test_accuracy" in run and all(run.get(key) == value for key, value in conditions.items())]


@dataclass(frozen=True)
class Comparison:
    """The runs of one condition beside those of another with the same seeds. Accuracies are fractions; `low` and `high` bound the mean difference
    at 95%, `p` is that of the paired t-test (two-sided; both by Student's t, for differences that scatter normally)."""

    condition: str
    title: str
    parameters: int
    accuracies: tuple[float, ...]           # by seed, all seeds of the condition
    differences: tuple[float, ...]          # to the other condition, by seed, where both have it
    low: float
    high: float
    p: float

    mean = property(lambda self: statistics.mean(self.accuracies))
    std = property(lambda self: statistics.stdev(self.accuracies))
    difference = property(lambda self: statistics.mean(self.differences))
    difference_std = property(lambda self: statistics.stdev(self.differences))


def compare(runs: list[dict], to: str = "kat") -> list[Comparison]:
    """Every condition of a study's runs against the condition `to`, whose own comparison comes first, without differences; the others follow
    by their mean difference, the most favourable first.

    Raises:
        ValueError: there are no runs of `to`, or a condition shares fewer than two seeds with it.
    """
    from scipy import stats

    conditions: dict[str, dict[int, dict]] = {}
    for run in runs:
        conditions.setdefault(run["condition"], {})[run["seed"]] = run
    if to not in conditions:
        raise ValueError(f"there are no runs of {to!r}; there are {', '.join(conditions) or 'none at all'}")
    found = []
    for name, by_seed in sorted(conditions.items(), key=lambda item: item[0] != to):
        run = next(iter(by_seed.values()))
        both = sorted(set(by_seed) & set(conditions[to]))
        if len(both) < 2:
            raise ValueError(f"{name!r} and {to!r} share the seeds {both}; a paired test needs two or more")
        pairs = [[by_seed[seed]["test_accuracy"] for seed in both], [conditions[to][seed]["test_accuracy"] for seed in both]]
        low = high = p = math.nan
        if name != to:
            test = stats.ttest_rel(*pairs)
            p, (low, high) = test.pvalue, test.confidence_interval(0.95)
        found.append(Comparison(name, run["title"], run["parameters"], tuple(by_seed[seed]["test_accuracy"] for seed in sorted(by_seed)),
                                tuple(a - b for a, b in zip(*pairs)) if name != to else (), low, high, p))
    return found[:1] + sorted(found[1:], key=lambda comparison: -comparison.difference)


def table(runs: list[dict], columns: dict[str, Callable[[dict], str]], caption: str) -> Html:
    """A table with a row for each run. `columns` maps headings to functions that take a run and return a cell's text."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell(run))}</td>" for cell in columns.values()) + "</tr>" for run in runs)
    return Html(f'<table class="katlib-table"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')


RUN_COLUMNS: dict[str, Callable[[dict], str]] = {
    "model": lambda run: {"grkan": "KAT", "mlp": "MLP twin"}[run["mlp"]],
    "parameters": lambda run: f"{run['parameters']:,}",
    "epochs": lambda run: str(len(run["epochs"])),
    "training images": lambda run: f"{run['config']['train_images']:,}",
    "test accuracy": lambda run: f"{run['test_accuracy']:.2%}",
    "test loss": lambda run: f"{run['epochs'][-1]['test_loss']:.3f}",
    "seed": lambda run: str(run["seed"]),
    "device": lambda run: run["device_name"],
    "date": lambda run: run["date"],
}
