"""What is settled before the first epoch: the config, the device, the model and its weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from katlib import hub
from katlib.architecture import Architecture, check_int
from katlib.files import user_path
from katlib.pretrained import OURS, load_pretrained
from katlib.train.recipe import FLAT_NAMES, PRESETS, Config, build_model
from katlib.vit import VisionTransformer

# what of an architecture is the recipe's, also if the weights are given
OF_RECIPE = ("drop_rate", "drop_path_rate")

MAX_SEED = 2**32 - 1


def check_arguments(
    preset: str | Config,
    epochs: int,
    seed: int,
    limit: int | None,
    test_limit: int | None,
    holdout: int,
    out: str | Path | None,
    needs_out: bool,
) -> None:
    """Raises a ValueError for an argument of `train` that is impossible whatever the data."""
    if isinstance(preset, str) and preset not in PRESETS:
        names = ", ".join(map(repr, PRESETS))
        raise ValueError(f"preset={preset!r:.100} is not known; allowed are {names}")
    check_int("epochs", epochs, 1)
    check_int("seed", seed, 0, MAX_SEED)
    for name, count in (("limit", limit), ("test_limit", test_limit)):
        if count is not None:
            check_int(name, count, 1)
    check_int("holdout", holdout, 0)
    if needs_out and not out:
        raise ValueError("resume=True or tensorboard=True needs out=, the folder of the run")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, else this process's GPU, else the CPU.

    Raises:
        ValueError: there is no such device here, or nothing can be computed on it.
    """
    if device is None and torch.cuda.is_available():
        # torchrun numbers the processes of a machine
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        chosen = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=chosen).item()
    # of several kinds, by the kind of the device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r:.100} cannot be used: {reason}") from error
    return chosen


# ---- weights to start from


@dataclass
class FirstWeights:
    """The weights that a run starts from.

    Attributes:
        description: for the record: the name, and for a file its SHA-256.
        architecture: of the model that they are from, for the images of the run.
        tensors: {name: tensor}; without the head if that is for other classes.
    """

    description: dict[str, str]
    architecture: Architecture
    tensors: dict[str, Tensor]


def read_first_weights(
    name_or_path: str | os.PathLike, sizes: Mapping[str, int], classes: Sequence[str]
) -> FirstWeights:
    """Reads the weights to start from.

    The head is left out if it has another number of outputs than there are classes, or if the names
    of its classes are known and are others.

    Args:
        name_or_path: as for `katlib.load_pretrained`.
        sizes: `img_size`, `in_chans` and `num_classes` of the data.
        classes: their names.

    Raises:
        ValueError: no weights, or for images of another number of channels.
    """
    if not str(name_or_path):
        raise ValueError("init_from is empty; needed is a name or a file of weights")
    model = load_pretrained(name_or_path, img_size=sizes["img_size"])
    channels = model.architecture.in_chans
    if channels != sizes["in_chans"]:
        raise ValueError(
            f"{name_or_path} is for images of {channels} channels; these have {sizes['in_chans']}"
        )
    known = model.pretrained_cfg.get("classes")
    other_classes = known is not None and list(known) != list(classes)
    tensors = dict(model.state_dict())
    if other_classes or model.architecture.num_classes != sizes["num_classes"]:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    architecture = replace(model.architecture, num_classes=sizes["num_classes"])
    return FirstWeights(_identity(name_or_path), architecture, tensors)


def _identity(name_or_path: str | os.PathLike) -> dict[str, str]:
    """The name of weights, and the SHA-256 of their file, if they are in one of the user's."""
    name = str(name_or_path)
    if name in hub.RELEASED or name in OURS:
        return {"name": name}
    path = user_path(name_or_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.name, "sha256": digest}


# ---- the config and the model


def choose_config(
    preset: str | Config,
    mlp: str | None,
    changes: Mapping[str, Any],
    sizes: Mapping[str, int],
    weights: FirstWeights | None = None,
) -> Config:
    """The preset's config with the values that were given instead, for the data.

    Args:
        preset, mlp, changes: as for `train`.
        sizes: `img_size`, `in_chans` and `num_classes` of the data.
        weights: if given, the model is theirs, and only its dropout is the preset's.

    Raises:
        ValueError: a value that is not allowed or not that of the weights' model, or a config for
            other images.
    """
    config = PRESETS[preset] if isinstance(preset, str) else preset
    if weights is None:
        return config.fit(sizes, mlp, **changes)
    rates = {name: getattr(config.architecture, name) for name in OF_RECIPE}
    given = replace(weights.architecture, **rates)
    config = replace(config, architecture=given).replace(mlp, **changes)
    for name in ("mlp", *changes):
        field = FLAT_NAMES.get(name, "architecture.mlp").removeprefix("architecture.")
        wanted = getattr(config.architecture, field, None)
        if field not in OF_RECIPE and wanted != getattr(given, field, None):
            raise ValueError(
                f"{name}={wanted!r:.100} was asked for, and the weights to start from are of a "
                f"model with {name}={getattr(given, field)!r:.100}"
            )
    return config


def new_model(
    config: Config, seed: int, device: torch.device, weights: FirstWeights | None = None
) -> VisionTransformer:
    """The model of a config, with weights that follow from the seed unless they are given.

    Raises:
        MemoryError: it does not fit into memory.
    """
    torch.manual_seed(seed)
    try:
        model = build_model(config)
        if weights is not None:
            model.load_state_dict(model.state_dict() | weights.tensors)
        return model.to(device)
    except RuntimeError as error:
        # torch has a type of its own for GPUs only
        if "memory" not in str(error):
            raise
        raise MemoryError(
            f"a model of {config.architecture.parameters:,} parameters does not fit into memory"
        ) from error


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast on a device; None for float32 without autocast.

    Args:
        precision: "auto", "float32", "bf16" or "fp16", as in `Config`.
        device: what computes. For "auto" a GPU that only emulates bfloat16, as Colab's T4 does,
            computes in float16.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def trained_network(model: nn.Module, device: torch.device, world: int, compile: bool) -> nn.Module:
    """The model, compiled if asked, and sharing its gradients if there are several processes."""
    network = cast(nn.Module, torch.compile(model)) if compile else model
    if world == 1:
        return network
    device_ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids)
