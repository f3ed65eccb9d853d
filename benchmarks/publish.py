"""Makes the model that comes with katlib: trains it into a folder, then publishes what the folder holds.

python benchmarks/publish.py --train runs/kat-cifar10       trains it, 15 epochs, an hour of one CPU core; goes on where it was stopped
python benchmarks/publish.py runs/kat-cifar10               writes katlib/weights/kat-cifar10.safetensors, results/cifar-nano-grkan-seed0-15epochs.json
                                                            and results/inside-kat-cifar10.json
python benchmarks/publish.py --train --twin runs/mlp        trains its twin with MLPs in the same way
python benchmarks/publish.py --twin runs/mlp                writes results/cifar-nano-mlp-seed0-15epochs.json, and results/inside-twins.json: what each
                                                            MLP and the largest channel are to either of the two
"""

import argparse
import copy
import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

import katlib
from katlib.book.recorder import Recorder
from katlib.book.results import FOLDER
from katlib.files import write_json
from katlib.pretrained import OURS, save_pretrained
from katlib.provenance import device_name, git_commit
from katlib.train import evaluate, train
from katlib.train.checkpoint import load_checkpoint
from katlib.train.data import CLASSES, MEAN, STD, normalize
from katlib.train.recipe import PRESETS, build_model

PRESET, EPOCHS, RECIPE = "cifar-nano", 15, {"lr": 2e-3}
NAME = "kat-cifar10"


def fit(folder: Path) -> None:
    data = katlib.load_cifar10()
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(data.test_images[:256], folder / "inside.json")
    if not (folder / "checkpoint.safetensors").exists():
        torch.manual_seed(0)
        recorder(build_model(replace(PRESETS[PRESET], **RECIPE), "grkan"), {"epoch": 0})
    train(
        PRESET,
        "grkan",
        EPOCHS,
        seed=0,
        out=folder,
        resume=True,
        data=data,
        on_epoch=recorder,
        **RECIPE,
    )


def publish(folder: Path) -> None:
    record = json.loads((folder / "result.json").read_text())
    model = katlib.load_pretrained(folder / "checkpoint.safetensors")
    OURS[NAME].parent.mkdir(exist_ok=True)
    save_pretrained(
        model,
        OURS[NAME],
        mean=MEAN,
        std=STD,
        classes=CLASSES,
        license="MIT",
        training={
            key: record[key]
            for key in (
                "preset",
                "mlp",
                "seed",
                "config",
                "commit",
                "date",
                "torch",
                "device_name",
                "data_sha256",
            )
        },
    )
    write_json(FOLDER / f"{PRESET}-grkan-seed0-{EPOCHS}epochs.json", record)
    shutil.copyfile(folder / "inside.json", FOLDER / f"inside-{NAME}.json")
    data = katlib.load_cifar10()
    for title, judged in (("as trained", model), ("in float16", katlib.load_pretrained(NAME))):
        loss, accuracy = evaluate(judged, data.test_images, data.test_labels)
        print(f"{title}: {accuracy:.2%} of 10,000 test images, loss {loss:.4f}")


@torch.no_grad()
def look_inside(model: torch.nn.Module, data) -> dict:
    """The accuracy on all test images, also without the MLP of each block in turn; and at each MLP's door the channel with the largest mean square over 256
    test images: mean and deviation, and its share of a token's squared length."""

    def accuracy(judged) -> float:
        return evaluate(judged, data.test_images, data.test_labels)[1]

    without, channels = [], []
    for block in range(len(model.blocks)):
        other = copy.deepcopy(model)
        for parameter in other.blocks[block].mlp.fc2.parameters():
            parameter.zero_()
        without.append(accuracy(other))
        seen: list[torch.Tensor] = []
        hook = model.blocks[block].norm2.register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
        model(normalize(data.test_images[:256]))
        hook.remove()
        x = seen[0].double()  # (images, tokens, C)
        channel = x.square().mean((0, 1)).argmax().item()
        values = x[..., channel]
        channels.append(
            {
                "channel": channel,
                "mean": values.mean().item(),
                "std": values.std().item(),
                "share": (values.square().mean() / x.square().sum(-1).mean()).item(),
            }
        )
    return {"accuracy": accuracy(model), "without_mlp": without, "largest_channel": channels}


def compare(folder: Path) -> None:
    record = json.loads((folder / "result.json").read_text())
    write_json(FOLDER / f"{PRESET}-mlp-seed0-{EPOCHS}epochs.json", record)
    data = katlib.load_cifar10()
    twin = build_model(replace(PRESETS[PRESET], **RECIPE), "mlp")
    load_checkpoint(folder / "checkpoint.safetensors", twin)
    found = {
        title: look_inside(model.eval(), data)
        for title, model in (("KAT", katlib.load_pretrained(NAME)), ("MLP twin", twin))
    }
    for title, inside in found.items():
        print(title, json.dumps(inside))
    write_json(
        FOLDER / "inside-twins.json",
        {
            "what": f"{NAME} and its twin: without each MLP, and their largest channels",
            "device_name": device_name(torch.device("cpu")),
            "torch": torch.__version__,
            "commit": git_commit(),
            "date": date.today().isoformat(),
            "models": found,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--twin", action="store_true")
    options = parser.parse_args()
    if options.train and options.twin:
        train(PRESET, "mlp", EPOCHS, seed=0, out=options.folder, resume=True, **RECIPE)
    else:
        (fit if options.train else compare if options.twin else publish)(options.folder)
