"""The command line of `katlib.train`: its flags are the fields of `katlib.train.recipe.Config` and the arguments of `train`."""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import distributed, nn

from katlib.train import loop as training
from katlib.train.recipe import PRESETS, Config

HELP = {
    "groups": "of the rational functions; `channel`: one for each",
    "numerator_groups": "likewise; 1: one numerator for all",
    "degrees": "of numerator and denominator",
    "act_init": "where the two functions start",
    "learned": "whether the coefficients are trained",
    "weight_std": "of the MLPs' matrices (default: variance-preserving)",
    "lr": "peak learning rate",
    "warmup": "share of all steps",
    "rand_augment": "operations on an image",
    "ema": "decay of the average of the weights that is evaluated",
}


def count(text: str) -> int | None:
    """A number of groups; None stands for one for each channel."""
    return None if text == "channel" else int(text)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `Config`; what is not given stays as in the preset."""
    group = parser.add_argument_group("recipe", "instead of the preset's")
    for field in fields(Config):
        kind = {
            "groups": count,
            "numerator_groups": count,
            "weight_std": float,
            "act_init": str,
            "degrees": int,
        }.get(field.name, field.type)
        options = (
            {"action": argparse.BooleanOptionalAction}
            if field.type is bool
            else {"type": kind, "metavar": field.name.upper().split("_")[-1]}
        )
        if field.name in ("degrees", "act_init"):
            options |= {
                "nargs": 2,
                "metavar": ("M", "N") if field.name == "degrees" else ("FIRST", "SECOND"),
            }
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=HELP.get(field.name),
            **options,
        )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m katlib.train",
        description="Train a KAT, or its MLP twin, on CIFAR-10. "
        "For several GPUs: torchrun --nproc-per-node 8 -m katlib.train ...",
    )
    result.add_argument("--preset", choices=PRESETS, default="cifar-nano")
    result.add_argument(
        "--mlp",
        choices=("grkan", "mlp"),
        default="grkan",
        help="grkan: a KAT; mlp: its twin (default: grkan)",
    )
    result.add_argument("--epochs", type=int, default=3)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--limit", type=int, help="train on the first N images only")
    result.add_argument("--test-limit", type=int, help="test on the first N images only")
    result.add_argument("--out", help="folder of the run (default: runs/PRESET-MLP-seedSEED)")
    result.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the folder, if there is one",
    )
    result.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    result.add_argument("--compile", action="store_true", help="torch.compile the model")
    result.add_argument(
        "--tensorboard", action="store_true", help="write the metrics for TensorBoard, too"
    )
    add_recipe(result)
    return result


def main(arguments: list[str] | None = None) -> None:
    options = vars(parser().parse_args(arguments))
    epochs, out = (
        options["epochs"],
        options["out"] or "runs/{preset}-{mlp}-seed{seed}".format(**options),
    )
    together = (
        "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1
    )  # started by torchrun
    if together:
        distributed.init_process_group()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    first = training.processes()[0] == 0

    def report(model: nn.Module, e: dict) -> None:
        print(
            f"epoch {e['epoch']}/{epochs}: train loss {e['train_loss']:.4f}, test loss {e['test_loss']:.4f}, "
            f"test accuracy {e['test_accuracy']:.2%}, {e['images_per_s']:.0f} images/s",
            flush=True,
        )

    try:
        record = training.train(**options | {"out": out, "on_epoch": report})
    except (
        training.TrainingDiverged,
        ValueError,
        RuntimeError,
        OSError,
        ImportError,
        SafetensorError,
    ) as error:
        sys.exit(f"katlib.train: {error}")
    except KeyboardInterrupt:
        whole = (Path(out) / "checkpoint.safetensors").exists()
        sys.exit(
            "\nkatlib.train: stopped; "
            + (
                f"`--resume` goes on after the last whole epoch in {out}"
                if whole
                else "no epoch was whole yet"
            )
        )
    finally:
        if together:
            distributed.destroy_process_group()
    if first:
        print(
            f"{record['parameters']:,} parameters, test accuracy {record['test_accuracy']:.2%} in {record['wall_s']:.0f} s; "
            f"record in {Path(out) / 'result.json'}"
        )


if __name__ == "__main__":
    main()
