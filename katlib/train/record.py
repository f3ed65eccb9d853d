"""What a training run leaves behind, as one dictionary: `result.json`."""

from __future__ import annotations

from datetime import date
from typing import Any

import torch
from torch import nn

from katlib.provenance import device_name, git_commit
from katlib.rational import GroupRational


def final_record(
    run: dict[str, Any],
    history: list[dict[str, Any]],
    model: nn.Module,
    *,
    device: torch.device,
    processes: int,
    data_sha256: str,
) -> dict[str, Any]:
    """The record of a whole run, with where and when it was made.

    Args:
        run: what was asked for: `preset`, `mlp`, `seed` and `config`.
        history: the metrics of each epoch.
        model: the model that was evaluated.
        device: where it was trained.
        processes: how many trained it together.
        data_sha256: of the data.
    """
    return {
        **run,
        "epochs": history,
        "test_accuracy": history[-1]["test_accuracy"],
        "wall_s": round(sum(metrics["wall_s"] for metrics in history), 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": processes,
        "device_name": device_name(device),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "data_sha256": data_sha256,
        "activations": learned_activations(model),
    }


def learned_activations(model: nn.Module) -> dict[str, dict[str, list[list[float]]]]:
    """The coefficients of every `GroupRational` of the model, as lists under its name."""
    return {
        name: {
            "numerator": module.weight_numerator.tolist(),
            "denominator": module.weight_denominator.tolist(),
        }
        for name, module in model.named_modules()
        if isinstance(module, GroupRational)
    }
