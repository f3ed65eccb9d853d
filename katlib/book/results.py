"""The measured runs in `results/`, from which the book's tables and figures are made."""

import json
from collections.abc import Callable
from pathlib import Path

from katlib.provenance import ROOT

FOLDER = ROOT / "results"  # of the repository; an installed package has none


def stored_runs(folder: Path = FOLDER, **conditions) -> list[dict]:
    """The runs in `folder` whose entries equal `conditions`, for example `mlp="grkan"`, by file name.

    Raises:
        FileNotFoundError: there is no such folder; the stored runs are part of the book's repository, not of the package.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: the stored runs come with the book's repository, not with the package"
        )
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [
        run
        for run in runs
        if "test_accuracy" in run
        and all(run.get(key) == value for key, value in conditions.items())
    ]


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
