"""Checkpoints that are whole or absent: weights, optimizer and progress in one safetensors file.

The tensors are `model.NAME`, `optimizer.INDEX.NAME` and, if the weights are averaged,
`average.NAME` and `steps`. The header's `state` is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from katlib.files import write_whole
from katlib.train.recipe import Average, Combined

# in what a run that goes on may differ from its checkpoint; "config" is compared field by field
MAY_DIFFER = ("config", "epochs", "stages")


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Combined,
    state: dict[str, Any],
    average: Average | None = None,
) -> None:
    """Writes a checkpoint.

    Whenever the process is killed, `path` holds a whole checkpoint: this one or the one before.

    Args:
        path: the file.
        model, optimizer: what is trained, and by what.
        state: the progress; anything that JSON can hold.
        average: of the model's weights, if there is one.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    if average is not None:
        averaged = average.model.state_dict()
        tensors |= {f"average.{name}": value for name, value in averaged.items()}
        tensors["steps"] = torch.tensor(average.steps)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with write_whole(path) as temporary:
        save_file(tensors, temporary, {"state": json.dumps(state)})


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Combined | None = None,
    average: Average | None = None,
) -> dict[str, Any]:
    """Puts a checkpoint's weights into the model, the optimizer and the average, in place.

    Returns:
        The state that was saved with them.

    Raises:
        ValueError: the file is no checkpoint of `katlib.train`.
    """
    state = load_state(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict(_part(tensors, "model."))
    if average is not None and "steps" in tensors:
        average.model.load_state_dict(_part(tensors, "average."))
        average.steps = int(tensors["steps"])
    if optimizer is not None:
        _load_optimizer(optimizer, _part(tensors, "optimizer."))
    return state


def load_state(path: Path) -> dict[str, Any]:
    """The state in a checkpoint's header; the tensors are not read.

    Raises:
        ValueError: the file is no checkpoint of `katlib.train`.
    """
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if "state" not in header:
        raise ValueError(f"{path} is not a checkpoint of katlib.train: its header has no state")
    return json.loads(header["state"])


# ---- going on


def check_same_run(path: Path, state: dict[str, Any], description: dict[str, Any]) -> None:
    """Raises a ValueError if a checkpoint is of another run; it names all that is different.

    Args:
        path: of the checkpoint.
        state: what it says of its run, under `run`.
        description: of the run that would go on. Its number of epochs is for `stages_of`.
    """
    old, new = state.get("run", {}), description
    old_values = old | old.get("config", {})
    new_values = new | new["config"]
    differences = [
        f"{name} was {old_values.get(name, 'absent')!s:.100}, "
        f"now {new_values.get(name, 'absent')!s:.100}"
        for name in new_values | old_values
        if name not in MAY_DIFFER
        and old_values.get(name, "absent") != new_values.get(name, "absent")
    ]
    if differences:
        raise ValueError(f"{path} belongs to another run: {'; '.join(differences)}")


def stages_of(path: Path, state: dict[str, Any], epochs: int) -> list[dict[str, int]]:
    """The stages of a run that goes on from a checkpoint until it has so many epochs.

    A stage is `first_epoch`, counted from 1, and `epochs`: from that epoch on, the learning rates
    are those of a run of so many epochs. More epochs than before begin a new stage.

    Args:
        path: of the checkpoint.
        state: what it says of its run.
        epochs: how many are asked for, with those that are done.

    Raises:
        ValueError: fewer epochs than before.

    Example:
        >>> from katlib.train.checkpoint import stages_of
        >>> state = {"run": {"config": {"epochs": 3}}, "history": [{}, {}, {}]}
        >>> stages_of(Path("checkpoint.safetensors"), state, 5)
        [{'first_epoch': 1, 'epochs': 3}, {'first_epoch': 4, 'epochs': 5}]
    """
    config, done = state["run"]["config"], len(state["history"])
    before = config["epochs"]
    stages = config.get("stages", [{"first_epoch": 1, "epochs": before}])
    if epochs == before:
        return stages
    if epochs < before:
        raise ValueError(
            f"{path} is of a run of {before} epochs, of which {done} are done, and epochs={epochs} "
            "is fewer; a run can go on for more"
        )
    return [*stages, {"first_epoch": done + 1, "epochs": epochs}]


# ---- tensors by name


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer | Combined, tensors: dict[str, Tensor]
) -> None:
    """Sets the optimizer's state from tensors that are named INDEX.NAME."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        states.setdefault(int(index), {})[key] = value
    # the groups hold the hyperparameters, which are those of this run
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
