"""The command line of `katlib.train`.

Its flags are the flat names of `katlib.train.recipe.Config` and the arguments of `train`.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import distributed, nn

from katlib.architecture import MLPS, POOLS, STEMS
from katlib.files import user_path
from katlib.train import loop
from katlib.train.data import NotDownloaded
from katlib.train.images import ImageData, load_image_folder
from katlib.train.recipe import CHOICES, PRESETS, Config

HELP = {
    "groups": "of the rational functions; `channel`: one for each",
    "numerator_groups": "likewise; 1: one numerator for all",
    "degrees": "of numerator and denominator",
    "act_init": "where the two functions start",
    "learned": "whether the coefficients are trained",
    "weight_std": "of the MLPs' matrices (default: variance-preserving)",
    "stem": "how tokens are made",
    "global_pool": "what the head sees: the class token or a weighted mean",
    "optimizer": "muon: for the blocks' matrices, and AdamW for the rest",
    "lr": "peak learning rate of AdamW",
    "muon_lr": "peak learning rate of Muon",
    "coefficient_lr": "of the rational functions, in units of --lr",
    "coefficient_decay": "weight decay of the rational functions",
    "warmup": "share of all steps",
    "frozen_until": "share of all steps before the coefficients learn",
    "schedule": "how the learning rate decays",
    "precision": "auto: bf16, fp16 on GPUs that lack it, float32 on the CPU",
    "shift": "largest shift of an image, in pixels",
    "cutout": "side of the square that is blanked, in pixels",
    "clip_grad": "largest norm of the gradient; 0: no clipping",
    "rand_augment": "operations on an image",
    "ema": "decay of the average of the weights that is evaluated",
}

# what becomes a message instead of a traceback: errors that the user can do something about
EXPECTED_ERRORS = (
    loop.TrainingDiverged,
    NotDownloaded,
    ValueError,
    OSError,
    ImportError,
    MemoryError,
    torch.OutOfMemoryError,
    SafetensorError,
)


def group_count(text: str) -> int | None:
    """A number of groups; `channel` is None, which stands for one for each channel."""
    return None if text == "channel" else int(text)


def name(text: str) -> str:
    """A name that is not empty."""
    if not text:
        raise ValueError
    return text


# of the flags whose type does not show in the default value
FLAG_OPTIONS: dict[str, dict[str, Any]] = {
    "groups": {"type": group_count},
    "numerator_groups": {"type": group_count},
    "degrees": {"type": int, "nargs": 2, "metavar": ("M", "N")},
    "act_init": {"type": str, "nargs": 2, "metavar": ("FIRST", "SECOND")},
    "weight_std": {"type": float},
    "stem": {"choices": STEMS},
    "global_pool": {"choices": POOLS},
    **{name: {"choices": choices} for name, choices in CHOICES.items()},
    "learned": {"action": argparse.BooleanOptionalAction},
}


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each value of a `Config`; what is not given stays as in the preset."""
    group = parser.add_argument_group("recipe", "instead of the preset's")
    for name, default in Config().as_dict().items():
        options = FLAG_OPTIONS.get(name, {"type": type(default)})
        if "type" in options:
            options = {"metavar": name.upper().split("_")[-1]} | options
        group.add_argument(
            "--" + name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=HELP.get(name),
            **options,
        )


def parser() -> argparse.ArgumentParser:
    """The parser; its results are arguments of `train`."""
    result = argparse.ArgumentParser(
        prog="python -m katlib.train",
        description="Train a KAT, or its MLP twin, on CIFAR-10 or on images of your own. "
        "For several GPUs: torchrun --nproc-per-node 8 -m katlib.train ...",
        # an abbreviation changes its meaning when a flag is added
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--preset", choices=PRESETS, default="cifar-nano")
    twin = "grkan: a KAT; mlp: its twin; others to compare with (default: grkan)"
    add("--mlp", choices=MLPS, help=twin)
    add("--epochs", type=int, default=3)
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="train on the first N images only")
    add("--test-limit", type=int, help="test on the first N images only")
    holdout = "evaluate on the last N training images, and not on the test images"
    add("--holdout", type=int, default=0, metavar="N", help=holdout)
    out = "folder of the run (default: one in runs, named after preset, mlp and seed)"
    add("--out", type=name, metavar="FOLDER", help=out)
    resume = (
        "go on from the checkpoint in the folder, if there is one; with more --epochs than "
        "before, until there are so many in all"
    )
    add("--resume", action="store_true", help=resume)
    init_from = (
        "start from these weights: a file, such as another run's checkpoint.safetensors, or a "
        "name, such as kat_tiny_patch16_224"
    )
    add("--init-from", type=name, metavar="WEIGHTS", help=init_from)
    add("--device", type=name, help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add("--compile", action="store_true", help="torch.compile the model")
    tensorboard = "write the metrics for TensorBoard, too"
    add("--tensorboard", action="store_true", help=tensorboard)
    add_images(result)
    add_recipe(result)
    return result


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for images of one's own."""
    group = parser.add_argument_group("images of your own", "instead of CIFAR-10")
    images = "with train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png, divided at random"
    group.add_argument("--images", type=name, metavar="FOLDER", help=images)
    img_size = "pixels a side, to which they are resized and cropped"
    group.add_argument("--img-size", type=int, metavar="SIZE", help=img_size)
    test_fraction = "share that is tested on, if they are divided (default: 0.2)"
    group.add_argument("--test-fraction", type=float, metavar="SHARE", help=test_fraction)


def images_of(options: dict[str, Any], show: bool) -> ImageData | None:
    """The images of the user's own, if the flags name a folder of them.

    Args:
        options: of the parser; what is about these images is removed.
        show: whether this process prints what it has read.

    Raises:
        ValueError: impossible flags or images.
        FileNotFoundError: no such folder.
    """
    folder = options.pop("images")
    others = {name: options.pop(name) for name in ("img_size", "test_fraction")}
    given = {name: value for name, value in others.items() if value is not None}
    if folder is None:
        if given:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{flags} needs --images, a folder; the images of CIFAR-10 stay as is")
        return None
    if "img_size" not in given:
        raise ValueError("--images needs --img-size, the side length in pixels they are resized to")
    data = load_image_folder(folder, progress=show, **given)
    if show:
        print(data, flush=True)
    return data


def name_the_user() -> None:
    """Gives a user without a name, as `docker run --user 1234` makes one, the name of its number.

    Without a name torch's optimizers and torchvision cannot be used: they ask for it when they
    choose a folder for compiled code.
    """
    try:
        getpass.getuser()
    # KeyError up to Python 3.12, OSError after
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"


def join_processes() -> bool:
    """Joins the other processes, if torchrun has started several; returns whether it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return False
    distributed.init_process_group()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return True


def print_epoch(metrics: loop.Metrics, epochs: int) -> None:
    print(
        f"epoch {metrics['epoch']}/{epochs}: train loss {metrics['train_loss']:.4f}, "
        f"test loss {metrics['test_loss']:.4f}, test accuracy {metrics['test_accuracy']:.2%}, "
        f"{metrics['images_per_s']:.0f} images/s",
        flush=True,
    )


def print_record(record: dict[str, Any], out: Path) -> None:
    print(
        f"{record['parameters']:,} parameters, test accuracy {record['test_accuracy']:.2%} "
        f"in {record['wall_s']:.0f} s; record in {out / 'result.json'}"
    )


def default_folder(options: dict[str, Any]) -> str:
    """Where a run is kept whose folder is not given."""
    mlp = options["mlp"] or PRESETS[options["preset"]].architecture.mlp
    model = f"{options['preset']}-{mlp}"
    if options["init_from"]:
        model = f"from-{Path(options['init_from']).stem}"
    images = f"{user_path(options['images']).name}-" if options["images"] else ""
    return f"runs/{images}{model}-seed{options['seed']}"


def say_interrupted(out: Path) -> str:
    """What Ctrl-C leaves."""
    if (out / loop.CHECKPOINT).exists():
        return f"stopped; `--resume` goes on after the last whole epoch in {out}"
    return "stopped; no epoch was whole yet"


def main(arguments: list[str] | None = None) -> None:
    """Trains as the arguments say, by default those of the command line."""
    options = vars(parser().parse_args(arguments))
    name_the_user()
    out = Path(options["out"] or default_folder(options)).expanduser()

    def report(model: nn.Module, metrics: loop.Metrics) -> None:
        print_epoch(metrics, options["epochs"])

    joined = join_processes()
    rank, _ = loop.processes()
    try:
        data = images_of(options, show=rank == 0)
        # a bar that moves is for a terminal, and not for a file
        shown = {"on_epoch": report, "progress": sys.stderr.isatty()}
        record = loop.train(**options | shown | {"data": data, "out": out})
    except EXPECTED_ERRORS as error:
        sys.exit(f"katlib.train: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nkatlib.train: {say_interrupted(out)}")
    finally:
        if joined:
            distributed.destroy_process_group()
    if rank == 0:
        print_record(record, out)


if __name__ == "__main__":
    main()
