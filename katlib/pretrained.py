"""Trained weights: the released KATs by name, a file by its path, and our own small file format.

The released models are those of the KAT paper (arXiv 2409.10594, table 2; `katlib.hub`). A file is
read without running code from it (`katlib.weight_files`), and compared name by name and shape by
shape with the model that it should fit before memory is taken for one: the links to the T and S
checkpoints on the release's page, for one, are interchanged.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from katlib import hub
from katlib.architecture import Architecture
from katlib.files import write_whole
from katlib.images import IMAGENET
from katlib.rational import initial_coefficients
from katlib.vit import Block, VisionTransformer
from katlib.weight_files import architecture_of, read_weights, stated_architecture

# the models that come with katlib
OURS: dict[str, Path] = {
    "kat-cifar10": Path(__file__).parent / "weights" / "kat-cifar10.safetensors"
}


def load_pretrained(
    name_or_path: str | os.PathLike, *, num_heads: int | None = None
) -> VisionTransformer:
    """A trained Vision Transformer, in evaluation mode, with float32 weights on the CPU.

    Args:
        name_or_path: a name: "kat_tiny_patch16_224", "kat_small_patch16_224" or
            "kat_base_patch16_224", trained on ImageNet-1k from scratch, each also with ".vitft",
            trained on from a ViT (both need the package huggingface_hub and, the first time, a
            network); or "kat-cifar10", which comes with katlib. Or the path of a file: safetensors,
            or PyTorch's own format (.pth, .pt, .bin, .tar), of weights alone or in a checkpoint of
            timm's training script (its averaged weights, if it has them) or of `katlib.train`.
        num_heads: attention heads, for files that do not say; default: one for each 64 channels, as
            in the released models.

    Returns:
        A `VisionTransformer` with the attribute `pretrained_cfg`, a dictionary with timm's names
        for what the images must be like: `mean` and `std` (three numbers each, of pixels scaled to
        [0, 1]), `input_size` (channels, height, width), `crop_pct`, `interpolation`, `num_classes`;
        and `architecture`, the model's arguments, `source`, where it came from, and `classes`, if
        known. Of a file that does not say, they are ImageNet's.

    Raises:
        ValueError: the file is damaged, holds objects other than tensors (a pickle that would run
            code, say), asks for a model that cannot be built, or has other names or shapes than the
            model.
        FileNotFoundError: neither a known name nor a file.
        ImportError: a released model without huggingface_hub.
        ConnectionError: the hub cannot be reached and the file is not in its cache.

    Example:
        >>> model = katlib.load_pretrained("kat-cifar10")
        >>> model.pretrained_cfg["classes"][:2], model.pretrained_cfg["input_size"]
        (['airplane', 'automobile'], (3, 32, 32))
    """
    name = str(name_or_path)
    path, images = _locate(name)
    state, header = read_weights(path)
    if name in hub.RELEASED:
        # so a file of another size is refused, and not taken for the model that was asked for
        architecture = hub.RELEASED[name]
    elif header.get("architecture"):
        architecture = stated_architecture(header["architecture"], path)
    else:
        architecture = architecture_of(state, num_heads or header.get("num_heads"), path)
    _check_depth(architecture, state, path)
    model = _without_weights(architecture, path)
    _check_names_and_shapes(model, state, path)
    _check_finite(state, path)
    model = model.to_empty(device="cpu")
    model.load_state_dict(state, strict=True)
    model.pretrained_cfg = _pretrained_cfg(name, architecture, images, header)
    return model.eval()


def save_pretrained(
    model: VisionTransformer,
    path: str | os.PathLike,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    **metadata: Any,
) -> None:
    """Writes a model as one safetensors file that `load_pretrained` reads.

    The weights are float16, and the header says how to use them. The coefficients of the rational
    functions stay float32: they are a thousandth of the parameters, and powers of x magnify their
    rounding.

    Args:
        model: the model.
        path: the file, ending in `.safetensors`; whole or absent, whatever happens meanwhile.
        mean, std: what images are normalised with, of pixels scaled to [0, 1], a number for each
            channel; default: those of `model.pretrained_cfg`.
        classes: names of the outputs.
        metadata: anything else that JSON can say.

    Raises:
        ValueError: no mean and std, names of another number than the outputs, or a weight that
            float16 cannot hold.

    Example:
        >>> from katlib.images import CLASSES, MEAN, STD
        >>> model = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
        ... )
        >>> katlib.save_pretrained(model, "kat.safetensors", mean=MEAN, std=STD, classes=CLASSES)
    """
    known = getattr(model, "pretrained_cfg", {})
    mean = known.get("mean") if mean is None else mean
    std = known.get("std") if std is None else std
    classes = known.get("classes") if classes is None else classes
    if mean is None or std is None:
        raise ValueError(
            "mean and std of the training images are needed: whoever loads the file must normalise "
            "as the training did"
        )
    if classes is not None and len(classes) != model.head.out_features:
        raise ValueError(
            f"{len(classes)} classes are named; the model has {model.head.out_features} outputs"
        )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header = {
        "architecture": _architecture_to_save(model, state).as_json(),
        "mean": mean,
        "std": std,
        "classes": classes,
        "crop_pct": known.get("crop_pct", 1.0),
    } | metadata
    texts = {key: json.dumps(value) for key, value in header.items() if value is not None}
    weights = _in_half_precision(state)
    with write_whole(path) as temporary:
        save_file(weights, temporary, texts)


def _locate(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a model's name or path, and what the hub says of its images."""
    if name in hub.RELEASED:
        return hub.download(name)
    if name in OURS:
        path = OURS[name]
        if not path.is_file():
            raise FileNotFoundError(
                f"{name!r} should come with katlib as {path.name}, which is not in this "
                "installation; install it from the repository"
            )
        return path, {}
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"{name!r} is neither a file nor a name that is known "
            f"({', '.join([*hub.RELEASED, *OURS])})"
        )
    return Path(name), {}


def _without_weights(architecture: Architecture, source: object) -> VisionTransformer:
    """A model on the meta device: it has names and shapes, and no numbers.

    Nothing is drawn, which would take a minute for KAT-B, and no memory is taken.

    Raises:
        ValueError: starts of the rational functions that do not exist.
    """
    try:
        with torch.device("meta"):
            return VisionTransformer(**architecture.as_dict())
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{source} asks for a model that cannot be built: {error}") from error


def _check_depth(architecture: Architecture, state: Mapping[str, Tensor], source: object) -> None:
    """Refuses a depth that the file's tensors do not have: even empty blocks take time to make."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if len(blocks) != architecture.depth:
        raise ValueError(
            f"{source} does not fit the model: it holds {len(blocks)} blocks for "
            f"{architecture.depth}"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _check_names_and_shapes(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Says in one line what does not fit, which `load_state_dict` says in hundreds.

    Raises:
        ValueError: other names or other shapes than the model's.
    """
    wanted, given = _shapes(model.state_dict()), _shapes(state)
    problems = {
        "tensors have another shape": [
            f"{name} {given[name]} for {shape}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ],
        "are missing": [name for name in wanted if name not in given],
        "are not of this model": [name for name in given if name not in wanted],
    }
    sentences = [
        f"{len(names)} {problem} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if sentences:
        raise ValueError(f"{source} does not fit the model: " + "; ".join(sentences))


def _check_finite(state: Mapping[str, Tensor], source: object) -> None:
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"{source} holds numbers that are not finite in {len(broken)} tensors, {broken[0]} for "
            "one"
        )


def _pretrained_cfg(
    name: str, architecture: Architecture, images: dict[str, Any], header: dict[str, Any]
) -> dict[str, Any]:
    """`pretrained_cfg`: what the file's header says, else the hub, else what is usual."""
    usual = IMAGENET
    if "architecture" in header:
        # models in our own format saw whole images, unless their header says otherwise
        usual = usual | {"crop_pct": 1.0}
    said = {key: value for key, value in header.items() if key != "num_heads"}
    cfg = usual | images | said
    return cfg | {
        "input_size": (architecture.in_chans, architecture.img_size, architecture.img_size),
        "source": name,
        "num_classes": architecture.num_classes,
        "architecture": architecture.as_json(),
        "mean": _channel_numbers("mean", cfg["mean"], name),
        "std": _channel_numbers("std", cfg["std"], name),
    }


def _channel_numbers(key: str, values: object, source: str) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(v, (int, float)) for v in values
    ):
        raise ValueError(
            f"{source} says {key}={values!r:.100}; needed is a number for each channel"
        )
    return tuple(values)


def _in_half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are stored: float16, but for the coefficients of rational functions.

    Raises:
        ValueError: a weight that float16 cannot hold.
    """
    stored = {}
    for name, value in state.items():
        is_coefficient = ".weight_numerator" in name or ".weight_denominator" in name
        stored[name] = value.float() if is_coefficient else value.half()
        if not stored[name].isfinite().all():
            raise ValueError(
                f"{name} holds values that are not finite in float16, whose largest number is 65504"
            )
    return stored


def _architecture_to_save(model: VisionTransformer, state: Mapping[str, Tensor]) -> Architecture:
    """The model's own architecture, unless its parts were exchanged after it was built."""
    stated = getattr(model, "architecture", None)
    if isinstance(stated, Architecture):
        stated = _with_plain_starts(stated)
        if _shapes(_without_weights(stated, "the model").state_dict()) == _shapes(state):
            return stated
    return architecture_of(state, cast(Block, model.blocks[0]).attn.num_heads)


def _with_plain_starts(architecture: Architecture) -> Architecture:
    """The same architecture; starts that are not names are pairs of lists of coefficients."""
    if architecture.mlp == "mlp":
        return architecture
    first, second = (_plain_start(start, architecture.degrees) for start in architecture.act_init)
    return replace(architecture, act_init=(first, second))


def _plain_start(start: Any, degrees: tuple[int, int]) -> str | list[list[float]]:
    if isinstance(start, str):
        return start
    return [coefficients.tolist() for coefficients in initial_coefficients(start, degrees)]
