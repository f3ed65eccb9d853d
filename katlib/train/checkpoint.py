"""Checkpoints that are whole or absent: weights, optimizer and progress in one safetensors file."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, average=None
) -> None:
    """Weights, optimizer, the average of the weights (`katlib.train.recipe.Average`) if there is one, and `state` (as JSON in the header) in one
    safetensors file, written aside and then renamed: whenever the process is killed, `path` holds a whole checkpoint or the one before it."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    if average is not None:
        tensors |= {
            f"average.{name}": value for name, value in average.model.state_dict().items()
        } | {"steps": torch.tensor(average.steps)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary,
            {"state": json.dumps(state)},
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, average=None
) -> dict:
    """Puts a checkpoint's weights into the model, the optimizer and the average, in place; returns its state."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        state = json.loads(file.metadata()["state"])

    def part(prefix: str) -> dict:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    model.load_state_dict(part("model."))
    if average is not None and "steps" in tensors:
        average.model.load_state_dict(part("average."))
        average.steps = tensors["steps"].item()
    if optimizer is not None:
        saved: dict[int, dict] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                saved.setdefault(int(i), {})[key] = value
        optimizer.load_state_dict(
            {"state": saved, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return state
