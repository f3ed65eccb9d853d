"""Trained weights: the released KATs by name, a file by its path, and our own small file format.

The released models are the six of the KAT paper (arXiv 2409.10594, table 2), on the Hugging Face hub under `adamdad/`; FlashKAT's checkpoints
(arXiv 2505.13813) hold the same tensors under two other names. A file is read without running code from it, and compared name by name and
shape by shape with the model that it should fit before anything is loaded: the links to the T and S checkpoints on the release's page,
for one, are interchanged.
"""

import argparse
import json
import os
import pickle
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from katlib.images import CIFAR10, IMAGENET
from katlib.vit import VisionTransformer

SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
OFFICIAL = {
    f"kat_{size}_patch16_224{tag}": f"adamdad/kat_{size}_patch16_224{tag}"
    for size in SIZES
    for tag in ("", ".vitft")
}  # name: hub
OURS = {"kat-cifar10": Path(__file__).parent / "weights" / "kat-cifar10.safetensors"}  # name: file
RENAMED = {
    "numerator_v": "weight_numerator",
    "denominator_v": "weight_denominator",
}  # FlashKAT's names: ours
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def load_pretrained(
    name_or_path: str | os.PathLike, *, num_heads: int | None = None
) -> VisionTransformer:
    """A trained Vision Transformer, in evaluation mode, with float32 weights on the CPU.

    Args:
        name_or_path: a name: "kat_tiny_patch16_224", "kat_small_patch16_224" or "kat_base_patch16_224", trained on ImageNet-1k from
            scratch, each also with ".vitft", trained on from a ViT (both need the package huggingface_hub and, the first time, a network);
            or "kat-cifar10", which comes with katlib. Or the path of a file: safetensors, or PyTorch's own format (.pth, .pt, .bin, .tar),
            of weights alone or in a checkpoint of timm's training script (its averaged weights, if it has them) or of `katlib.train`.
        num_heads: attention heads, for files that do not say; default: one for each 64 channels, as in the released models.

    Returns:
        A `VisionTransformer` with the attribute `pretrained_cfg`, a dictionary with timm's names for what the images must be like:
        `mean` and `std` (three numbers each, of pixels scaled to [0, 1]), `input_size` (channels, height, width), `crop_pct`,
        `interpolation`, `num_classes`; and `architecture`, the model's arguments, `source`, where it came from, and `classes`, if known.
        Of a file that does not say, they are ImageNet's.

    Raises:
        ValueError: the file is damaged, holds objects other than tensors (a pickle that would run code, say), or has other names or
            shapes than the model.
        FileNotFoundError: neither a known name nor a file.
        ImportError: a released model without huggingface_hub.
        ConnectionError: the hub cannot be reached and the file is not in its cache.

    Example:
        >>> model = katlib.load_pretrained("kat-cifar10")
        >>> model.pretrained_cfg["classes"][:2], model.pretrained_cfg["input_size"]
        (['airplane', 'automobile'], (3, 32, 32))
    """
    name, expected, config = str(name_or_path), {}, {}
    if name in OFFICIAL:
        path, config = _download(name)
        expected = SIZES[name.split("_")[1]] | {
            "img_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
        }
    else:
        path = OURS.get(name, Path(name_or_path))
        if not path.is_file():
            raise FileNotFoundError(
                f"{name!r} is neither a file nor a name that is known ({', '.join([*OFFICIAL, *OURS])})"
                if name not in OURS
                else f"{name!r} should come with katlib as {path.name}, which is not in this installation; install it from the repository"
            )
    state, stored = read_weights(path)
    heads = stored.pop("num_heads", None)
    whole = (
        {"crop_pct": 1.0} if "architecture" in stored else {}
    )  # our own files are of models that saw whole images, unless they say otherwise
    architecture = stored.pop("architecture", None) or architecture_of(
        state, num_heads or heads, path
    )
    model = build(
        architecture | expected
    )  # a file of another size is refused, not taken for what was asked
    load_strictly(model, state, path)
    config = IMAGENET | whole | config | stored
    model.pretrained_cfg = config | {
        "input_size": (model.patch_embed.proj.in_channels, model.img_size, model.img_size),
        "source": name,
        "num_classes": model.head.out_features,
        "architecture": architecture,
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    return model.eval()


def save_pretrained(
    model: VisionTransformer,
    path: str | os.PathLike,
    *,
    mean=None,
    std=None,
    classes=None,
    **metadata,
) -> None:
    """Writes a model as one safetensors file that `load_pretrained` reads: float16 weights, and how to use them in the header.

    The coefficients of the rational functions stay float32: they are a thousandth of the numbers, and powers of x magnify their rounding.

    Args:
        model: the model.
        path: the file, ending in `.safetensors`; whole or absent, whatever happens meanwhile.
        mean, std: what images are normalised with, of pixels scaled to [0, 1], a number for each channel; default: those of
            `model.pretrained_cfg`.
        classes: names of the outputs.
        metadata: anything else that JSON can say.

    Raises:
        ValueError: no mean and std, names of another number than the outputs, or a weight that float16 cannot hold.

    Example:
        >>> model = katlib.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10)
        >>> katlib.save_pretrained(model, "kat.safetensors", mean=katlib.train.data.MEAN, std=katlib.train.data.STD, classes=katlib.train.data.CLASSES)
    """
    known = getattr(model, "pretrained_cfg", {})
    mean, std, classes = (
        mean or known.get("mean"),
        std or known.get("std"),
        classes or known.get("classes"),
    )
    if mean is None or std is None:
        raise ValueError(
            "mean and std of the training images are needed: whoever loads the file must normalise as the training did"
        )
    if classes is not None and len(classes) != model.head.out_features:
        raise ValueError(
            f"{len(classes)} classes are named; the model has {model.head.out_features} outputs"
        )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    half = {
        name: value.float()
        if ".weight_numerator" in name or ".weight_denominator" in name
        else value.half()
        for name, value in state.items()
    }
    too_large = [name for name, value in half.items() if not value.isfinite().all()]
    if too_large:
        raise ValueError(
            f"{too_large[0]} holds values that are not finite in float16, whose largest number is 65504"
        )
    header = {
        "architecture": architecture_of(state, model.blocks[0].attn.num_heads),
        "mean": mean,
        "std": std,
        "classes": classes,
        "crop_pct": known.get("crop_pct", 1.0),
    } | metadata
    temporary = f"{os.fspath(path)}.{os.getpid()}.part"
    save_file(
        half,
        temporary,
        {key: json.dumps(value) for key, value in header.items() if value is not None},
    )
    os.replace(temporary, path)


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file under katlib's names, and what its header says. Nothing in the file is run.

    Raises:
        ValueError: a damaged file, or one that holds anything but tensors, plain containers and the arguments of a training script.
    """
    path, header = Path(path), {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}
                header = {
                    key: _parsed(value)
                    for key, value in (file.metadata() or {}).items()
                    if key != "format"
                }
        else:
            with torch.serialization.safe_globals(
                [argparse.Namespace]
            ):  # timm's checkpoints keep their command line in one
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # there is no end to the errors that wrong bytes can cause
        reason = (str(error) or type(error).__name__).splitlines()
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            called = re.search(
                r"GLOBAL (\S+)", str(error)
            )  # "Trying to load unsupported GLOBAL posix.system ..."
            raise ValueError(
                f"{path} holds more than weights: reading it would run {called[1] if called else 'code'}, of its author's choice. It was not "
                "read. Ask for a safetensors file, or save model.state_dict() alone."
            ) from None
        raise ValueError(
            f"{path} is damaged or no file of weights ({reason[0][:200]}); fetch it again"
        ) from error
    for key in (
        "state_dict_ema",
        "state_dict",
        "model_ema",
        "model",
    ):  # the averaged weights are the ones that timm evaluates
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise ValueError(
            f"{path} holds no state dict: a dictionary from names to tensors is needed, alone or under 'state_dict' or 'model'"
        )
    if "state" in header:  # a checkpoint of katlib.train: its optimizer is left out
        header = CIFAR10 | {"num_heads": header["state"]["run"]["config"]["num_heads"]}
        kept = (
            "average." if "steps" in state else "model."
        )  # if there is an average, it is what was evaluated
        state = {
            name.removeprefix(kept): value for name, value in state.items() if name.startswith(kept)
        }
    return {renamed(name): value for name, value in state.items()}, header


def architecture_of(
    state: dict[str, Tensor], num_heads: int | None = None, source="the state dict"
) -> dict:
    """The arguments of the `VisionTransformer` whose tensors these are. Only num_heads does not show in them; default: embed_dim / 64."""
    try:
        embed_dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        architecture = {
            "img_size": round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch_size,
            "patch_size": patch_size,
            "in_chans": in_chans,
            "num_classes": state["head.weight"].shape[0],
            "embed_dim": embed_dim,
            "depth": 1
            + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
            "num_heads": num_heads or max(1, embed_dim // 64),
            "mlp_ratio": next(
                ratio
                for ratio in (hidden / embed_dim, (hidden + 0.5) / embed_dim)
                if int(embed_dim * ratio) == hidden
            ),
        }
        if "blocks.0.mlp.act2.weight_numerator" not in state:
            return architecture | {"mlp": "mlp"}
        (numerator_groups, m), (groups, n) = (
            state[f"blocks.0.mlp.act2.weight_{part}"].shape for part in ("numerator", "denominator")
        )
        init = [[[1.0] * m, [0.0] * n]] * 2  # of these degrees; the file's coefficients replace it
        groups, numerator_groups = (
            None if count == hidden and first == embed_dim else count
            for count, first in (  # one for each channel
                (groups, len(state["blocks.0.mlp.act1.weight_denominator"])),
                (numerator_groups, len(state["blocks.0.mlp.act1.weight_numerator"])),
            )
        )
        return (
            architecture
            | {
                "mlp": "grkan",
                "groups": groups,
                "degrees": [m - 1, n],
                "numerator_groups": numerator_groups,
            }
            | ({} if (m, n) == (6, 4) else {"act_init": init})
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{source} is no Vision Transformer that katlib knows: {error}; its tensors begin with {', '.join(list(state)[:3])}"
        ) from error


def build(architecture: dict) -> VisionTransformer:
    """A model of these arguments whose weights are still to come: nothing is drawn, which would take a minute for KAT-B."""
    with torch.device("meta"):
        model = VisionTransformer(**architecture)
    return model.to_empty(device="cpu")


def load_strictly(model: nn.Module, state: dict[str, Tensor], source) -> None:
    """`load_state_dict(strict=True)`, in place, with a message that says in one line what does not fit.

    Raises:
        ValueError: other names, other shapes, or numbers that are not finite.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    other = [
        f"{name} {given[name]} for {wanted[name]}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (
            ("tensors have another shape", other),
            ("are missing", [name for name in wanted if name not in given]),
            ("are not of this model", [name for name in given if name not in wanted]),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: " + "; ".join(problems))
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"{source} holds numbers that are not finite in {len(broken)} tensors, {broken[0]} for one"
        )
    model.load_state_dict(state, strict=True)


def renamed(name: str) -> str:
    """A parameter's name in katlib, from FlashKAT's or from that of a wrapped model."""
    for prefix in ("module.", "_orig_mod."):  # of DistributedDataParallel and torch.compile
        name = name.removeprefix(prefix)
    head, _, last = name.rpartition(".")
    return f"{head}.{RENAMED[last]}" if last in RENAMED else name


def _parsed(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _download(name: str) -> tuple[Path, dict]:
    """A released model's file in the hub's cache, and what its configuration there says of the images."""
    repository = OFFICIAL[name]
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{name!r} is on the Hugging Face hub; `pip install huggingface_hub` (it comes with timm), or load a file that you have"
        ) from error

    def fetched(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise  # no network: not the same as no such file
        return None

    try:
        path = next(filter(None, map(fetched, HUB_FILES)), None)
        settings = fetched("config.json")
    except OSError as error:  # every error of the hub is one
        raise ConnectionError(
            f"{name!r} could not be fetched from the hub ({type(error).__name__}: {str(error).splitlines()[0][:150]}). Where there is a network, download "
            f"https://huggingface.co/{repository}/resolve/main/{HUB_FILES[0]}, bring the file here, and pass its path to load_pretrained"
        ) from error
    if path is None:
        raise ConnectionError(
            f"{repository} has neither {HUB_FILES[0]} nor {HUB_FILES[1]} on the hub"
        )
    stated = json.loads(settings.read_text()).get("pretrained_cfg", {}) if settings else {}
    return path, {
        key: stated[key] for key in ("mean", "std", "crop_pct", "interpolation") if key in stated
    }
