"""Files of weights, read without running code from them, and the architecture that they show.

Read are safetensors, and PyTorch's own format in all the wrappings that training scripts use.
Whatever is wrong with a file, the error is one sentence that names it. `katlib.pretrained` builds
models from what this module reads.
"""

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from katlib.architecture import Architecture
from katlib.images import CIFAR10

# FlashKAT's checkpoints (arXiv 2505.13813) hold the same tensors under two other names
FLASHKAT_NAMES = {"numerator_v": "weight_numerator", "denominator_v": "weight_denominator"}

# what DistributedDataParallel and torch.compile put before a parameter's name
WRAPPERS = ("module.", "_orig_mod.")

# where training scripts keep the weights; averaged ones come first, for timm evaluates these
STATE_KEYS = ("state_dict_ema", "state_dict", "model_ema", "model")


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file under katlib's names, and what its header says.

    Nothing in the file is run.

    Args:
        path: safetensors, or PyTorch's own format if the name has another ending.

    Returns:
        {name: tensor} and {key: value}; the header's values are parsed where they are JSON.

    Raises:
        ValueError: a damaged file, or one that holds anything but tensors, plain containers and the
            arguments of a training script.
    """
    path = Path(path)
    content, header = _read_file(path)
    state = _state_dict(content, path)
    if "state" in header:
        state, header = _training_checkpoint(state, header, path)
    return {katlib_name(name): value for name, value in state.items()}, header


def architecture_of(
    state: Mapping[str, Tensor],
    num_heads: int | None = None,
    source: object = "the state dict",
) -> Architecture:
    """The architecture of the `VisionTransformer` whose tensors these are.

    Args:
        state: {name: tensor}.
        num_heads: the only argument that does not show in the tensors; default: embed_dim / 64.
        source: what an error calls the tensors.

    Raises:
        ValueError: tensors of another kind of model.

    Example:
        >>> from katlib.weight_files import architecture_of
        >>> vit = katlib.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, num_heads=2)
        >>> architecture_of(vit.state_dict(), num_heads=2).depth
        12
    """
    try:
        arguments = _shown_arguments(state)
        if "blocks.0.mlp.act2.weight_numerator" in state:
            arguments |= _shown_rational_arguments(state)
        else:
            arguments["mlp"] = "mlp"
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} is no Vision Transformer that katlib knows: {error}; its tensors begin with "
            f"{', '.join(list(state)[:3])}"
        ) from error
    arguments["num_heads"] = num_heads or max(1, arguments["embed_dim"] // 64)
    return stated_architecture(arguments, source)


def stated_architecture(arguments: object, source: object) -> Architecture:
    """The architecture that a file asks for, checked before anything is built.

    Raises:
        ValueError: not a dictionary, an unknown argument, or a value that is wrong.
    """
    try:
        return Architecture.from_dict(arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} asks for a model that cannot be built: {error}") from error


def katlib_name(name: str) -> str:
    """A parameter's name in katlib, from FlashKAT's or from that of a wrapped model.

    Example:
        >>> from katlib.weight_files import katlib_name
        >>> katlib_name("module.blocks.0.mlp.act1.numerator_v")
        'blocks.0.mlp.act1.weight_numerator'
    """
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    module, dot, parameter = name.rpartition(".")
    return module + dot + FLASHKAT_NAMES.get(parameter, parameter)


def _read_file(path: Path) -> tuple[object, dict[str, Any]]:
    """What a file holds and what its header says; every error of the reading is a ValueError."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_pytorch(path), {}
    except (FileNotFoundError, PermissionError):
        raise
    # there is no end to the kinds of errors that wrong bytes can cause
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            # without the cause, which advises to read the file with weights_only=False
            raise ValueError(_would_run_code(path, error)) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or no file of weights ({reason[:200]}); fetch it again"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    # "format" is safetensors' own
    header = {key: _parsed(text) for key, text in metadata.items() if key != "format"}
    return tensors, header


def _parsed(text: str) -> Any:
    """The value that a header's text stands for, or the text if it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pytorch(path: Path) -> object:
    # timm's checkpoints keep their command line in a Namespace
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _would_run_code(path: Path, error: pickle.UnpicklingError) -> str:
    # torch says "Trying to load unsupported GLOBAL posix.system ..."
    function = re.search(r"GLOBAL (\S+)", str(error))
    return (
        f"{path} holds more than weights: reading it would run "
        f"{function[1] if function else 'code'}, of its author's choice. It was not read. Ask for "
        "a safetensors file, or save model.state_dict() alone."
    )


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The names and tensors in what a file holds, whatever they are wrapped in."""
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not _is_state_dict(content):
        raise ValueError(
            f"{path} holds no state dict: a dictionary from names to tensors is needed, alone or "
            "under 'state_dict' or 'model'"
        )
    return content


def _is_state_dict(content: dict[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _training_checkpoint(
    state: dict[str, Tensor], header: dict[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a checkpoint of `katlib.train`, without its optimizer.

    If it keeps an average of the weights, that is what was evaluated.
    """
    try:
        num_heads = header["state"]["run"]["config"]["num_heads"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has the header of a checkpoint of katlib.train, but it does not say num_heads"
        ) from error
    prefix = "average." if "steps" in state else "model."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    return weights, CIFAR10 | {"num_heads": num_heads}


def _shown_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of a `VisionTransformer` that show in its tensors' names and shapes."""
    embed_dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    patches_a_side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    blocks = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    return {
        "img_size": patches_a_side * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "num_classes": state["head.weight"].shape[0],
        "embed_dim": embed_dim,
        "depth": 1 + max(blocks),
        "mlp_ratio": _mlp_ratio(embed_dim, hidden),
    }


def _mlp_ratio(embed_dim: int, hidden: int) -> float:
    """A ratio with int(embed_dim * ratio) == hidden; rounding makes hidden / embed_dim miss it."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else (hidden + 0.5) / embed_dim


def _shown_rational_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those arguments that show in the coefficients of the rational functions."""
    # before the first linear map, (groups, coefficients), and before the second
    numerators = [state[f"blocks.0.mlp.act{i}.weight_numerator"] for i in (1, 2)]
    denominators = [state[f"blocks.0.mlp.act{i}.weight_denominator"] for i in (1, 2)]
    widths = (
        state["blocks.0.mlp.fc1.weight"].shape[1],
        state["blocks.0.mlp.fc1.weight"].shape[0],
    )
    _, numerator_size = numerators[1].shape
    _, n = denominators[1].shape
    degrees = (numerator_size - 1, n)
    arguments: dict[str, Any] = {
        "mlp": "grkan",
        "groups": _group_count(denominators, widths),
        "numerator_groups": _group_count(numerators, widths),
        "degrees": degrees,
    }
    if degrees != (5, 4):
        # any start of these degrees will do, for the file's coefficients replace it
        start = [[1.0] * numerator_size, [0.0] * n]
        arguments["act_init"] = (start, start)
    return arguments


def _group_count(coefficients: list[Tensor], widths: tuple[int, int]) -> int | None:
    """How many groups the two rational functions have; None for one function a channel."""
    first, second = len(coefficients[0]), len(coefficients[1])
    return None if (first, second) == widths else second
