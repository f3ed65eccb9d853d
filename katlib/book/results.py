"""The measured runs in `results/`, from which the book's tables and figures are made."""

import json
from collections.abc import Callable
from pathlib import Path

from katlib.provenance import ROOT

# of the repository; an installed package has no results
FOLDER = ROOT / "results"

MODEL_NAMES = {"grkan": "KAT", "mlp": "MLP twin"}


def stored_runs(folder: Path = FOLDER, **conditions: object) -> list[dict]:
    """The runs in `folder` whose entries equal `conditions`, in the order of their file names.

    Args:
        folder: where their JSON files are; a file without a test accuracy is no run.
        conditions: keys of a run with the values that they must have.

    Raises:
        FileNotFoundError: there is no such folder; the stored runs are part of the book's
            repository, not of the package.

    Example:
        >>> from katlib.book.results import stored_runs
        >>> [run["seed"] for run in stored_runs(mlp="mlp")]
        [0, 0]
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: the stored runs come with the book's repository, "
            "not with the package"
        )
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    ]
    return [
        record for record in records if "test_accuracy" in record and _matches(record, conditions)
    ]


def _matches(run: dict, conditions: dict[str, object]) -> bool:
    return all(run.get(key) == value for key, value in conditions.items())


# the columns of a table of runs: a heading, and how a run's cell is written
RUN_COLUMNS: dict[str, Callable[[dict], str]] = {
    "model": lambda run: MODEL_NAMES[run["mlp"]],
    "parameters": lambda run: f"{run['parameters']:,}",
    "epochs": lambda run: str(len(run["epochs"])),
    "training images": lambda run: f"{run['config']['train_images']:,}",
    "test accuracy": lambda run: f"{run['test_accuracy']:.2%}",
    "test loss": lambda run: f"{run['epochs'][-1]['test_loss']:.3f}",
    "seed": lambda run: str(run["seed"]),
    "device": lambda run: run["device_name"],
    "date": lambda run: run["date"],
}
