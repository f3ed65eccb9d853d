"""Trained weights: the released KATs by name, a file by its path, and our own small file format.

The released models are those of the KAT paper (arXiv 2409.10594, table 2; `katlib.hub`). A file is
read without running code from it (`katlib.weight_files`), and compared name by name and shape by
shape with the model that it should fit before memory is taken for one: the links to the T and S
checkpoints on the release's page, for one, are interchanged.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from katlib import hub, probe
from katlib.architecture import RATIONAL_ARGUMENTS, Architecture
from katlib.files import user_path, write_whole
from katlib.foreign import foreign_features
from katlib.images import IMAGENET
from katlib.init import truncated_normal_
from katlib.rational import initial_coefficients
from katlib.vit import Block, VisionTransformer
from katlib.weight_files import (
    WRAPPERS,
    Weights,
    architecture_of,
    katlib_name,
    read_weights,
    shown_mlp,
    stated_architecture,
)

# the models that come with katlib
OURS: dict[str, Path] = {
    name: Path(__file__).parent / "weights" / f"{name}.safetensors"
    for name in ("kat-cifar10", "kat-cifar10-compact")
}

# of a file that says nothing of its images
UNKNOWN_IMAGES = dict.fromkeys(IMAGENET)

# what our own header says, which `metadata` must not replace
HEADER_KEYS = ("architecture", "mean", "std", "classes", "crop_pct", "interpolation", "probe")

# the arguments that say how a model starts or trains, and not what it computes
HOW_IT_TRAINS = ("act_init", "drop_rate", "drop_path_rate")


def load_pretrained(
    name_or_path: str | os.PathLike,
    *,
    num_heads: int | None = None,
    architecture: str | Architecture | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
) -> VisionTransformer:
    """A trained Vision Transformer, in evaluation mode, with float32 weights on the CPU.

    Args:
        name_or_path: a name: "kat_tiny_patch16_224", "kat_small_patch16_224" or
            "kat_base_patch16_224", trained on ImageNet-1k from scratch, each also with ".vitft",
            trained on from a ViT (both need the package huggingface_hub and, the first time, a
            network); or "kat-cifar10", which comes with katlib. Or the path of a file of any
            ending: safetensors, or PyTorch's own format, of weights alone or in a checkpoint of
            timm's training script (its averaged weights, if it has them) or of `katlib.train`.
        num_heads: attention heads, for files that do not say.
        architecture: for files that do not say it: some or all arguments of
            `katlib.VisionTransformer`, as a dictionary or an `Architecture`, or the name of a
            released model. What it leaves open is read off the tensors.
        num_classes: for another number of classes than the file's, the model gets a new head, drawn
            by torch's global generator as that of a new model.
        img_size: for another size of images than the file's, the position embedding is resampled
            (bicubic with antialiasing, as timm does).

    Returns:
        A `VisionTransformer` with the attribute `pretrained_cfg`, a dictionary with timm's names
        for what the images must be like: `mean` and `std` (three numbers each, of pixels scaled to
        [0, 1]), `input_size` (channels, height, width), `crop_pct`, `interpolation`, `num_classes`;
        and `architecture`, the model's arguments, `source`, where it came from, and `classes`, if
        known. What a file does not say of its images is None.

    Raises:
        ValueError: the file is damaged or no file, holds objects other than tensors (a pickle that
            would run code, say), does not say all that determines the model, asks for a model that
            cannot be built, has other names or shapes than the model, or gives other logits than
            when it was saved; or `num_classes` or `img_size` are impossible.
        FileNotFoundError: neither a known name nor a file.
        ImportError: a released model without huggingface_hub.
        ConnectionError: the hub cannot be reached and the file is not in its cache.

    A file of weights alone that fits a released KAT in all names and shapes is taken for one, with
    a warning, unless `num_heads` or `architecture` is given.

    Example:
        >>> model = katlib.load_pretrained("kat-cifar10")
        >>> model.pretrained_cfg["classes"][:2], model.pretrained_cfg["input_size"]
        (['airplane', 'automobile'], (3, 32, 32))
        >>> katlib.load_pretrained("kat-cifar10", num_classes=3, img_size=64).head
        Linear(in_features=128, out_features=3, bias=True)
    """
    name = str(name_or_path)
    path, images = _locate(name)
    weights = read_weights(path)
    given = _given_arguments(architecture, num_heads)
    if isinstance(architecture, str):
        images = IMAGENET | images
    whole, images = _architecture_and_images(name, path, weights, given, images)
    model = _with_weights(whole, weights.tensors, path)
    _check_function(model, weights.header, path)
    cfg = _pretrained_cfg(name, whole, images)
    adapted = replace(
        whole,
        num_classes=whole.num_classes if num_classes is None else num_classes,
        img_size=whole.img_size if img_size is None else img_size,
    )
    if adapted != whole:
        model = _adapted(model, adapted)
        cfg = _adapted_cfg(cfg, whole, adapted)
    model.pretrained_cfg = cfg
    return model.eval()


def save_pretrained(
    model: nn.Module,
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
    rounding. The header also has the logits for one fixed image (`katlib.probe`), which
    `load_pretrained` compares.

    Args:
        model: a `katlib.VisionTransformer`, or one of timm's or another's that computes the same;
            on any device, also within DistributedDataParallel or compiled. It is not changed.
        path: the file, usually ending in `.safetensors`; whole or absent, whatever happens
            meanwhile.
        mean, std: what images are normalised with, of pixels scaled to [0, 1], a number for each
            channel; default: those of `model.pretrained_cfg`.
        classes: names of the outputs.
        metadata: anything else that JSON can say.

    Raises:
        ValueError: a model that computes what no `katlib.VisionTransformer` does, no mean and std,
            names of another number than the outputs, or a weight that float16 cannot hold.

    Example:
        >>> from katlib.images import CLASSES, MEAN, STD
        >>> model = katlib.VisionTransformer(
        ...     img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
        ... )
        >>> katlib.save_pretrained(model, "kat.safetensors", mean=MEAN, std=STD, classes=CLASSES)
    """
    reserved = [key for key in metadata if key in HEADER_KEYS]
    if reserved:
        raise ValueError(f"{reserved} are katlib's own; give your metadata other names")
    model = _unwrapped(model)
    _check_expressible(model)
    images = _images_to_save(model, mean, std, classes)
    stored = _in_half_precision(_state_to_save(model))
    architecture, outputs = _architecture_and_outputs(model, stored)
    header = {
        "architecture": architecture.as_json(),
        **images,
        "probe": probe.as_json(outputs),
        **metadata,
    }
    texts = {key: json.dumps(value) for key, value in header.items() if value is not None}
    with write_whole(path) as temporary:
        save_file(stored, temporary, texts)


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
    path = user_path(name)
    if path.is_dir():
        raise ValueError(f"{name!r} is a folder; give the path of a file of weights in it")
    if not path.is_file():
        raise FileNotFoundError(
            f"{name!r} is neither a file nor a name that is known "
            f"({', '.join([*hub.RELEASED, *OURS])})"
        )
    return path, {}


# ---- which model a file holds


def _given_arguments(
    architecture: str | Architecture | Mapping[str, Any] | None, num_heads: int | None
) -> dict[str, Any]:
    """The arguments of a model that a caller of `load_pretrained` gives.

    Raises:
        ValueError: unknown ones, or two that contradict each other.
    """
    if isinstance(architecture, str):
        if architecture not in hub.RELEASED:
            raise ValueError(
                f"architecture={architecture!r} is not known; as a name allowed are "
                f"{', '.join(hub.RELEASED)}"
            )
        architecture = hub.RELEASED[architecture]
    if isinstance(architecture, Architecture):
        architecture = architecture.as_dict()
    if not isinstance(architecture, Mapping | None):
        raise ValueError(
            f"architecture={architecture!r:.100}; needed is a name, a dictionary or an Architecture"
        )
    given = dict(architecture or {})
    known = [field.name for field in fields(Architecture)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{unknown} are not known; an architecture has {', '.join(known)}")
    if num_heads is not None:
        _check_agreement(given, {"num_heads": num_heads}, "architecture=")
        given["num_heads"] = num_heads
    return given


def _architecture_and_images(
    name: str, path: Path, weights: Weights, given: dict[str, Any], images: dict[str, Any]
) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a file's model, and what its images are like.

    Each comes from where it is said with most authority: by the name of a released model, by a
    header of ours, by a checkpoint, by the caller.
    """
    state = weights.tensors
    if name in hub.RELEASED:
        # so a file of another size is refused, and not taken for the model that was asked for
        stated, usual = hub.RELEASED[name], IMAGENET
    elif "architecture" in weights.header:
        stated = stated_architecture(weights.header["architecture"], path)
        # models in our own format saw whole images, unless their header says otherwise
        usual = UNKNOWN_IMAGES | {"crop_pct": 1.0, "interpolation": "bicubic"}
    else:
        usual = UNKNOWN_IMAGES
        released = None if weights.arguments or given else _released_like(state)
        if released is None:
            _check_agreement(weights.arguments, given, path)
            stated = architecture_of(state, weights.arguments | given, path)
        else:
            stated, usual = hub.RELEASED[released], IMAGENET
            warnings.warn(
                f"{path} does not say num_heads. It has the names and shapes of {released}, so it "
                f"is taken for that, with num_heads={stated.num_heads}; say "
                f"architecture={released!r} if that is right, or else num_heads=",
                stacklevel=3,
            )
    _check_agreement(stated.as_dict(), given, path)
    return stated, usual | images | weights.header


def _check_agreement(said: Mapping[str, Any], given: Mapping[str, Any], source: object) -> None:
    """Refuses a caller's arguments that are not those of the file, which would go unheard."""
    without_effect = () if said.get("mlp") == "grkan" else RATIONAL_ARGUMENTS
    for name, value in given.items():
        if name in (*HOW_IT_TRAINS, *without_effect):
            continue
        own = said.get(name, value)
        pair = [list(v) if isinstance(v, tuple) else v for v in (own, value)]
        if pair[0] != pair[1]:
            raise ValueError(f"{source} says {name}={own!r}, and {name}={value!r} was asked for")


def _released_like(state: Mapping[str, Tensor]) -> str | None:
    """The released KAT whose names and shapes these tensors have."""
    given = _shapes(state)
    for name, architecture in hub.RELEASED.items():
        if given.get("norm.weight") != (architecture.embed_dim,):
            continue
        if _shapes(_without_weights(architecture, name).state_dict()) == given:
            return name
    return None


# ---- the model of a file


def _with_weights(
    architecture: Architecture, state: Mapping[str, Tensor], source: object
) -> VisionTransformer:
    """The model with these weights, in float32 on the CPU; they are copied.

    Memory is taken only after names and shapes have been compared.

    Raises:
        ValueError: tensors that do not fit, or numbers that are not finite.
    """
    _check_sizes(architecture, state, source)
    model = _without_weights(architecture, source)
    _check_names_and_shapes(model, state, source)
    _check_kinds(model, state, source)
    _check_finite(state, source)
    own = {name: _own_copy(value) for name, value in state.items()}
    model.load_state_dict(own, strict=True, assign=True)
    return model.eval()


def _own_copy(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", dtype, copy=True).contiguous()


def _without_weights(architecture: Architecture, source: object) -> VisionTransformer:
    """A model on the meta device: it has names and shapes, and no numbers.

    Nothing is drawn, and no memory is taken.

    Raises:
        ValueError: starts of the rational functions that do not exist.
    """
    try:
        with torch.device("meta"):
            return VisionTransformer(**architecture.as_dict())
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{source} asks for a model that cannot be built: {error}") from error


def _check_sizes(architecture: Architecture, state: Mapping[str, Tensor], source: object) -> None:
    """Refuses sizes that the file's tensors do not have, where even empty modules take time."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if len(blocks) != architecture.depth:
        raise ValueError(
            f"{source} does not fit the model: it holds {len(blocks)} blocks for "
            f"{architecture.depth}"
        )
    numbers = sum(value.numel() for value in state.values())
    coefficients = sum(architecture.degrees)
    if architecture.mlp == "grkan" and coefficients > numbers:
        raise ValueError(
            f"{source} does not fit the model: degrees={architecture.degrees} need other shapes, "
            f"and the file holds {numbers} numbers"
        )


def _check_kinds(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Refuses whole numbers for weights, and weights for whole numbers."""
    for name, wanted in model.state_dict().items():
        if wanted.is_floating_point() != state[name].is_floating_point():
            raise ValueError(
                f"{source} does not fit the model: {name} is {state[name].dtype} for {wanted.dtype}"
            )


def _check_function(model: VisionTransformer, header: Mapping[str, Any], source: object) -> None:
    """Compares what the model makes of the probe image with what the header says of it.

    Files of earlier versions say nothing of it.

    Raises:
        ValueError: another function than when the file was written.
    """
    if "probe" not in header:
        return
    try:
        expected = probe.from_json(header["probe"])
    except ValueError as error:
        raise ValueError(f"{source} has a damaged header: {error}") from error
    difference = probe.largest_difference(_outputs(model), expected)
    if difference > probe.TOLERANCE:
        raise ValueError(
            f"{source} makes another function than the model that was saved: the outputs for the "
            f"probe image differ by {difference:.2%} of the largest. The weights or the header "
            "were changed; fetch the file again"
        )


def _outputs(model: VisionTransformer) -> probe.Outputs:
    architecture = model.architecture
    return probe.probe_outputs(model, architecture.in_chans, architecture.img_size)


# ---- for other images and classes


def _adapted(model: VisionTransformer, architecture: Architecture) -> VisionTransformer:
    """The same model for another number of classes or another size of images."""
    old = model.architecture
    state = model.state_dict()
    if architecture.num_classes != old.num_classes:
        shape = (architecture.num_classes, architecture.embed_dim)
        weight = torch.empty(shape, dtype=torch.float32, device="cpu")
        state["head.weight"] = truncated_normal_(weight, 0.02)
        state["head.bias"] = torch.zeros(shape[0], dtype=torch.float32, device="cpu")
    state["pos_embed"] = _resampled(state["pos_embed"], old, architecture)
    return _with_weights(architecture, state, "the adapted model")


def _resampled(position: Tensor, old: Architecture, new: Architecture) -> Tensor:
    """A position embedding (1, tokens, C) for another number of patches a side.

    That of the class token is kept. What is done is timm's `resample_abs_pos_embed`.
    """
    sides = [architecture.img_size // architecture.patch_size for architecture in (old, new)]
    if sides[0] == sides[1]:
        return position
    prefix = old.tokens - old.patches
    grid = position[:, prefix:].unflatten(1, (sides[0], sides[0]))  # (1, H, W, C)
    grid = F.interpolate(
        grid.permute(0, 3, 1, 2), size=(sides[1], sides[1]), mode="bicubic", antialias=True
    )  # (1, C, H', W')
    return torch.cat([position[:, :prefix], grid.flatten(2).transpose(1, 2)], 1)


def _adapted_cfg(cfg: dict[str, Any], old: Architecture, new: Architecture) -> dict[str, Any]:
    """`pretrained_cfg` for other images and classes; a new head has no names for its outputs."""
    cfg = cfg | _sizes_cfg(new)
    if new.num_classes != old.num_classes:
        cfg.pop("classes", None)
    return cfg


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
    # as float32, for a number of float64 may be too large; not all dtypes know what is finite
    broken = [name for name, value in state.items() if not value.float().isfinite().all()]
    if broken:
        raise ValueError(
            f"{source} holds numbers that are not finite in {len(broken)} tensors, {broken[0]} for "
            "one"
        )


def _pretrained_cfg(name: str, architecture: Architecture, said: dict[str, Any]) -> dict[str, Any]:
    """`pretrained_cfg`, from what the file or the hub says of the images.

    Raises:
        ValueError: something else than they can be.
    """
    cfg = {key: value for key, value in said.items() if key != "probe"}
    for key in ("mean", "std"):
        cfg[key] = _channel_numbers(key, cfg[key], name)
    _check_image_settings(cfg, name)
    _check_classes(cfg.get("classes"), architecture.num_classes, name)
    return cfg | {"source": name} | _sizes_cfg(architecture)


def _sizes_cfg(architecture: Architecture) -> dict[str, Any]:
    return {
        "input_size": (architecture.in_chans, architecture.img_size, architecture.img_size),
        "num_classes": architecture.num_classes,
        "architecture": architecture.as_json(),
    }


def _channel_numbers(key: str, values: object, source: str) -> tuple[float, ...] | None:
    """A number for each channel; None if it is not known."""
    if values is None:
        return None
    numbers = list(values) if isinstance(values, (list, tuple)) else []
    if not numbers or not all(probe.is_number(v) and (v > 0 or key == "mean") for v in numbers):
        raise ValueError(
            f"{source} says {key}={values!r:.100}; needed is a number for each channel"
        )
    return tuple(numbers)


def _check_image_settings(cfg: Mapping[str, Any], source: str) -> None:
    crop, interpolation = cfg["crop_pct"], cfg["interpolation"]
    if crop is not None and not (probe.is_number(crop) and crop > 0):
        raise ValueError(f"{source} says crop_pct={crop!r:.100}; needed is a share of the image")
    if interpolation is not None and not isinstance(interpolation, str):
        raise ValueError(f"{source} says interpolation={interpolation!r:.100}; needed is a name")


def _check_classes(classes: object, outputs: int, source: str) -> None:
    if classes is None:
        return
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{source} says classes={classes!r:.100}; needed is a list of names")
    if len(classes) != outputs:
        raise ValueError(f"{source} names {len(classes)} classes; the model has {outputs} outputs")


# ---- what is saved


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel, torch.compile or an average of weights."""
    children = dict(model.named_children())
    while len(children) == 1 and next(iter(children)) in WRAPPERS:
        (model,) = children.values()
        children = dict(model.named_children())
    return model


def _check_expressible(model: nn.Module) -> None:
    """Refuses features of other libraries' models that katlib's have not.

    Raises:
        ValueError: it names them.
    """
    if isinstance(model, VisionTransformer):
        return
    foreign = foreign_features(model)
    if foreign:
        raise ValueError(
            f"katlib.VisionTransformer has no {', '.join(foreign)}, so this model cannot be saved "
            "as one; save model.state_dict() by torch.save, and load it into the same model"
        )


def _images_to_save(
    model: nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """What the header says of the images and the outputs.

    Raises:
        ValueError: no mean and std, or names of another number than the outputs.
    """
    known = getattr(model, "pretrained_cfg", None) or {}
    mean = known.get("mean") if mean is None else mean
    std = known.get("std") if std is None else std
    classes = known.get("classes") if classes is None else classes
    if mean is None or std is None:
        raise ValueError(
            "mean and std of the training images are needed: whoever loads the file must normalise "
            "as the training did"
        )
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the model's head is {type(head).__name__}; it must be one linear map")
    if classes is not None and len(classes) != head.out_features:
        raise ValueError(
            f"{len(classes)} classes are named; the model has {head.out_features} outputs"
        )
    return {
        "mean": [float(v) for v in mean],
        "std": [float(v) for v in std],
        "classes": None if classes is None else list(classes),
        "crop_pct": known.get("crop_pct", 1.0),
        "interpolation": known.get("interpolation"),
    }


def _state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, under katlib's names.

    Raises:
        ValueError: weights that are not here: on the meta device, or shared among processes.
    """
    state = {}
    for name, value in model.state_dict().items():
        if value.is_meta or hasattr(value, "full_tensor"):
            raise ValueError(
                f"{name} has no numbers or only a part of them in this process; gather the weights "
                "first (torch.distributed.checkpoint.state_dict.get_model_state_dict)"
            )
        state[katlib_name(name)] = value.detach().cpu().contiguous()
    return state


def _in_half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are stored: float16, but for the coefficients of rational functions.

    Raises:
        ValueError: a weight that float16 cannot hold.
    """
    stored = {}
    for name, value in state.items():
        is_coefficient = ".weight_numerator" in name or ".weight_denominator" in name
        dtype = torch.float32 if is_coefficient else torch.float16
        if not value.is_floating_point():
            dtype = value.dtype
        # copied, because safetensors refuses tensors that share their memory
        stored[name] = value.to(dtype, copy=True)
        if not stored[name].isfinite().all():
            raise ValueError(
                f"{name} holds values that are not finite in float16, whose largest number is 65504"
            )
    return stored


def _architecture_and_outputs(
    model: nn.Module, stored: Mapping[str, Tensor]
) -> tuple[Architecture, probe.Outputs]:
    """The architecture to save, and what katlib's model makes of the probe image.

    Raises:
        ValueError: katlib's model of this architecture and these weights computes something else
            than the model.
    """
    architecture = _architecture_to_save(model, stored)
    outputs = _outputs(_with_weights(architecture, stored, "the model to be saved"))
    names = {name: stored[katlib_name(name)] for name in model.state_dict()}
    try:
        own = probe.probe_outputs(model, architecture.in_chans, architecture.img_size, names)
    # whatever a model of another's may raise
    except Exception as error:
        raise ValueError(f"the model cannot be run on an image: {error}") from error
    difference = probe.largest_difference(outputs, own)
    if difference > probe.TOLERANCE:
        raise ValueError(
            "the model computes something else than a katlib.VisionTransformer with its weights: "
            f"the outputs for one image differ by {difference:.2%} of the largest. A part was "
            "replaced by another kind, or an output is not finite; save model.state_dict() by "
            "torch.save, and load it into the same model"
        )
    return architecture, outputs


def _architecture_to_save(model: nn.Module, state: Mapping[str, Tensor]) -> Architecture:
    """The model's own architecture, unless its parts were exchanged after it was built."""
    stated = getattr(model, "architecture", None)
    if isinstance(stated, Architecture):
        stated = replace(_with_plain_starts(stated), num_classes=len(state["head.weight"]))
        if _shapes(_without_weights(stated, "the model").state_dict()) == _shapes(state):
            return stated
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not len(blocks):
        raise ValueError(f"{type(model).__name__} is no Vision Transformer that katlib knows")
    given: dict[str, Any] = {"num_heads": cast(Block, blocks[0]).attn.num_heads}
    if shown_mlp(state) is None:
        given["mlp"] = stated.mlp if isinstance(stated, Architecture) else "mlp"
    return architecture_of(state, given, "the model to be saved")


def _with_plain_starts(architecture: Architecture) -> Architecture:
    """The same architecture; starts that are not names are pairs of lists of coefficients."""
    if architecture.mlp != "grkan":
        return architecture
    first, second = (_plain_start(start, architecture.degrees) for start in architecture.act_init)
    return replace(architecture, act_init=(first, second))


def _plain_start(start: Any, degrees: tuple[int, int]) -> str | list[list[float]]:
    if isinstance(start, str):
        return start
    return [coefficients.tolist() for coefficients in initial_coefficients(start, degrees)]
