"""Files of weights, read without running code from them, and the architecture that they show.

Read are safetensors, and PyTorch's own format in all the wrappings that training scripts use.
Whatever is wrong with a file, the error is one sentence that names it. `katlib.pretrained` builds
models from what this module reads.
"""

import argparse
import json
import os
import pathlib
import pickle
import re
import threading
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from katlib import hub
from katlib.architecture import Architecture
from katlib.images import CIFAR10, IMAGENET

# FlashKAT's checkpoints (arXiv 2505.13813) hold the same tensors under two other names
FLASHKAT_NAMES = {"numerator_v": "weight_numerator", "denominator_v": "weight_denominator"}

# the parts of a parameter's name that DistributedDataParallel and averaged models, torch.compile,
# sharded models and checkpointed blocks add; Lightning puts the last one before
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "model",
)

# where training scripts keep the weights; averaged ones come first, for timm evaluates these
STATE_KEYS = (
    "state_dict_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model_ema",
    "model",
    "module",
)

# what torch.optim.swa_utils.AveragedModel keeps beside the weights
BOOKKEEPING = "n_averaged"

# the arguments of timm's models that change how they train, and not what they compute
TIMMS_HARMLESS = ("weight_init", "fix_init", "dynamic_img_size", "pretrained_strict")

_READING = threading.Lock()

_ARCHITECTURE_FIELDS = [argument.name for argument in fields(Architecture)]


@dataclass
class Weights:
    """What a file of weights holds.

    Attributes:
        tensors: {name: tensor}, with katlib's names.
        header: what it says beside them, of the images for one.
        arguments: what it says of the architecture without saying all, as checkpoints do.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | os.PathLike) -> Weights:
    """The tensors of a file under katlib's names, and what it says beside them.

    Nothing in the file is run. Its content tells safetensors from PyTorch's own format, not its
    name.

    Raises:
        ValueError: a damaged file, or one that holds anything but tensors, plain containers and the
            plain objects that training scripts keep beside the weights.
    """
    path = Path(path)
    content, header = _read_file(path)
    arguments: dict[str, Any] = {}
    if isinstance(content, dict) and "arch" in content:
        header, arguments = _said_by_timm(content, path)
    tensors = _state_dict(content, path)
    if "state" in header:
        tensors, header, arguments = _training_checkpoint(tensors, header, path)
    return Weights(_with_katlib_names(tensors, path), header, arguments)


def architecture_of(
    state: Mapping[str, Tensor],
    given: Mapping[str, Any],
    source: object = "the state dict",
) -> Architecture:
    """The architecture of the `VisionTransformer` whose tensors these are.

    Args:
        state: {name: tensor}.
        given: arguments that are known. Two may be needed that do not show in the tensors:
            `num_heads`, and where `shown_mlp` finds none, `mlp`.
        source: what an error calls the tensors.

    Raises:
        ValueError: tensors of another kind of model, or an argument that is needed and not given.

    Example:
        >>> from katlib.weight_files import architecture_of
        >>> vit = katlib.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, num_heads=2)
        >>> architecture_of(vit.state_dict(), {"num_heads": 2}).depth
        12
    """
    try:
        arguments = _shown_arguments(state) | dict(given)
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} is no Vision Transformer that katlib knows: {error}; its tensors begin with "
            f"{', '.join(list(state)[:3])}"
        ) from error
    _check_nothing_missing(arguments, source)
    return stated_architecture(arguments, source)


def shown_mlp(state: Mapping[str, Tensor]) -> str | None:
    """What stands in the MLPs' place; None for an MLP whose activation does not show."""
    prefix = "blocks.0.mlp."
    signs = {"act2.weight_numerator": "grkan", "fc1_g.weight": "swiglu", "act.weight": "prelu"}
    for name, mlp in signs.items():
        if prefix + name in state:
            return mlp
    return None


# arguments that tensors may not show, each with an example
_ASKED_FOR = {"num_heads": 4, "mlp": "mlp"}


# arguments that tensors may not show, each with an example
_ASKED_FOR = {"num_heads": 4, "mlp": "mlp"}


def _check_nothing_missing(arguments: Mapping[str, Any], source: object) -> None:
    """Asks for the arguments without which the tensors may make any of several functions."""
    missing = {name: value for name, value in _ASKED_FOR.items() if arguments.get(name) is None}
    if not missing:
        return
    example = "num_heads=4" if list(missing) == ["num_heads"] else f"architecture={missing}"
    raise ValueError(
        f"{source} does not say {' and '.join(missing)} of its model. The tensors do not show it, "
        "and with another value the same tensors make another function. Say it, for example "
        f"load_pretrained(path, {example}), or have the file written by katlib.save_pretrained, "
        "whose files say everything"
    )


def stated_architecture(arguments: object, source: object) -> Architecture:
    """The architecture that a file asks for, checked before anything is built.

    Raises:
        ValueError: not a dictionary, an unknown argument, or a value that is wrong.
    """
    try:
        return Architecture.from_dict(arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{source} asks for a model that cannot be built: {error}") from error


def katlib_name(name: str) -> str:
    """A parameter's name in katlib, from FlashKAT's or from that of a wrapped model.

    Example:
        >>> from katlib.weight_files import katlib_name
        >>> katlib_name("_orig_mod.module.blocks.0.mlp.act1.numerator_v")
        'blocks.0.mlp.act1.weight_numerator'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    parts[-1:] = [FLASHKAT_NAMES.get(part, part) for part in parts[-1:]]
    return ".".join(parts)


def _with_katlib_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors under katlib's names.

    Raises:
        ValueError: two tensors with the same name, or a tensor without numbers of its own.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new_name = katlib_name(name)
        if new_name in renamed:
            raise ValueError(f"{path} holds {new_name!r} twice; which one is right it does not say")
        if new_name != BOOKKEEPING:
            _check_dense(name, value, path)
            renamed[new_name] = value
    return renamed


def _check_dense(name: str, value: Tensor, path: Path) -> None:
    """Refuses tensors that do not lie in the file number by number, as parameters do."""
    if value.is_meta:
        problem = "has a shape and no numbers (it is on the meta device)"
    elif value.is_nested or value.layout != torch.strided:
        problem = "is sparse or nested"
    elif value.is_quantized or value.is_complex():
        problem = f"has the dtype {value.dtype}"
    # a view can repeat one number a billion times
    elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
        problem = f"has the shape {tuple(value.shape)} and fewer numbers"
    else:
        return
    raise ValueError(f"{path} is no file of weights that katlib can read: {name} {problem}")


def _read_file(path: Path) -> tuple[object, dict[str, Any]]:
    """What a file holds and what its header says; every error of the reading is a ValueError."""
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        return _read_pytorch(path), {}
    except (FileNotFoundError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        # without the cause, which advises to read the file with weights_only=False
        raise ValueError(_not_unpickled(path, error)) from None
    # there is no end to the kinds of errors that wrong bytes can cause
    except Exception as error:
        raise ValueError(_damaged(path, str(error) or type(error).__name__)) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: by its first bytes, else by its ending."""
    with path.open("rb") as file:
        start = file.read(9)
    # the length of the header, then the header, which is JSON
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and length <= path.stat().st_size - 8:
        return True
    # a zip archive or a pickle
    is_pytorch = start[:2] == b"PK" or start[:1] == b"\x80"
    return not is_pytorch and path.suffix.lower() == ".safetensors"


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
    # torch's list of what is safe belongs to the process, and leaving the block restores it
    with _READING, torch.serialization.safe_globals(_plain_objects()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain_objects() -> list[Callable | tuple[Callable, str]]:
    """What training scripts keep beside the weights and what can do nothing but hold values.

    These are command lines, paths, and NumPy's numbers and arrays.
    """
    # by what NumPy itself says makes its numbers and arrays; the module's name has changed
    makers: dict[str, Any] = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.zeros(1).__reduce__()[0],
    }
    numpy = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in makers.items()
    ]
    # read as paths that have no file system, for those of Windows cannot be made elsewhere
    pure_paths: dict[str, Callable] = {
        "PosixPath": pathlib.PurePosixPath,
        "WindowsPath": pathlib.PureWindowsPath,
    }
    paths = [
        (pure, f"{module}.{prefix}{name}")
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
        for name, pure in pure_paths.items()
    ]
    # numbers and text; not records and objects, whose pickles can forge pointers
    codes = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"
    dtypes = {type(np.dtype(code)) for code in codes}
    plain = [argparse.Namespace, types.SimpleNamespace, np.ndarray, np.dtype, *dtypes]
    return [*plain, *numpy, *paths]


def _not_unpickled(path: Path, error: pickle.UnpicklingError) -> str:
    # torch says "Unsupported global: GLOBAL posix.system ...", after some advice
    reason = str(error).rpartition("WeightsUnpickler error:")[2]
    function = re.search(r"nsupported .*(?:GLOBAL|class) (\S+)", reason)
    if function is None:
        return _damaged(path, reason)
    return (
        f"{path} holds more than weights: reading it would run {function[1]}, of its author's "
        "choice. It was not read. Ask for a safetensors file, or save model.state_dict() alone."
    )


def _damaged(path: Path, reason: str) -> str:
    first_line = reason.strip().partition("\n")[0]
    return f"{path} is damaged or no file of weights ({first_line[:200]}); fetch it again"


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


def _said_by_timm(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint of timm's training script says of the images and of the architecture.

    It keeps the model's registered name and the command line.

    Raises:
        ValueError: a KAT with features that katlib does not have.
    """
    architecture = hub.RELEASED.get(str(content["arch"]))
    if architecture is None:
        return {}, {}
    args = content.get("args")
    command_line = vars(args) if isinstance(args, argparse.Namespace) else {}
    model_kwargs = command_line.get("model_kwargs")
    chosen = dict(model_kwargs) if isinstance(model_kwargs, dict) else {}
    if command_line.get("gp"):
        chosen["global_pool"] = command_line["gp"]
    foreign = [
        f"{name}={value!r}"
        for name, value in chosen.items()
        if name not in (*_ARCHITECTURE_FIELDS, *TIMMS_HARMLESS) and not str(name).endswith("_rate")
    ]
    if chosen.get("global_pool", "token") != "token":
        foreign.append(f"global_pool={chosen['global_pool']!r}")
    if foreign:
        raise ValueError(
            f"{path} holds a model with {', '.join(foreign)}, which katlib does not have; load it "
            "by timm"
        )
    images = {key: command_line[key] for key in hub.IMAGE_KEYS if command_line.get(key)}
    return IMAGENET | images, {"num_heads": chosen.get("num_heads", architecture.num_heads)}


def _training_checkpoint(
    state: dict[str, Tensor], header: dict[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The weights in a checkpoint of `katlib.train`, without its optimizer.

    If it keeps an average of the weights, that is what was evaluated.

    Returns:
        The tensors, what the checkpoint says of the images, and what it says of the architecture.
    """
    try:
        run = header["state"]["run"]
        said = run["config"] | {"mlp": run["mlp"]}
        arguments = {name: said[name] for name in _ARCHITECTURE_FIELDS if name in said}
        arguments["num_heads"] = said["num_heads"]
        images = CIFAR10 | run.get("images", {})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has the header of a checkpoint of katlib.train, but it does not say num_heads "
            "and mlp"
        ) from error
    prefix = "average." if "steps" in state else "model."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    return weights, images, arguments


def _shown_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of a `VisionTransformer` that show in its tensors' names and shapes."""
    embed_dim = state["norm.weight"].shape[0]
    arguments = _shown_stem(state)
    has_class_token = "cls_token" in state
    patches_a_side = round((state["pos_embed"].shape[1] - has_class_token) ** 0.5)
    blocks = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    mlp = shown_mlp(state)
    arguments |= {
        "img_size": patches_a_side * arguments["patch_size"],
        "global_pool": "token" if has_class_token else "seq",
        "num_classes": state["head.weight"].shape[0],
        "embed_dim": embed_dim,
        "depth": 1 + max(blocks),
    }
    if mlp == "grkan":
        arguments |= _shown_rational_arguments(state)
    if mlp is not None:
        arguments["mlp"] = mlp
    if mlp == "swiglu":
        hidden = state["blocks.0.mlp.fc1_g.weight"].shape[0]
        arguments["mlp_ratio"] = 3 / 2 * hidden / embed_dim
    else:
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        arguments["mlp_ratio"] = _mlp_ratio(embed_dim, hidden)
    return arguments


def _shown_stem(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those arguments that show in the layer or layers that make the tokens."""
    convolutions = [name for name in state if name.startswith("patch_embed.conv_layers.")]
    if convolutions:
        in_chans = state["patch_embed.conv_layers.0.0.weight"].shape[1]
        return {"stem": "conv", "patch_size": 2 ** len(convolutions), "in_chans": in_chans}
    _, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    return {"stem": "patch", "patch_size": patch_size, "in_chans": in_chans}


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
