"""Makes the model that comes with katlib: trains it into a folder, then publishes what the folder holds.

    python benchmarks/publish.py --train runs/kat-cifar10       trains it, 15 epochs, an hour of one CPU core; goes on where it was stopped
    python benchmarks/publish.py runs/kat-cifar10               writes katlib/weights/kat-cifar10.safetensors, results/cifar-nano-grkan-seed0-15epochs.json
                                                                and results/inside-kat-cifar10.json
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

import katlib
from katlib.data import CLASSES, MEAN, STD
from katlib.inside import Recorder
from katlib.pretrained import OURS, save_pretrained
from katlib.recipe import PRESETS, build_model
from katlib.results import FOLDER, write_json
from katlib.train import evaluate, train

PRESET, EPOCHS, RECIPE = "cifar-nano", 15, {"lr": 2e-3}
NAME = "kat-cifar10"


def fit(folder: Path) -> None:
    data = katlib.load_cifar10()
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(data.test_images[:256], folder / "inside.json")
    if not (folder / "checkpoint.safetensors").exists():
        torch.manual_seed(0)
        recorder(build_model(replace(PRESETS[PRESET], **RECIPE), "grkan"), {"epoch": 0})
    train(PRESET, "grkan", EPOCHS, seed=0, out=folder, resume=True, data=data, on_epoch=recorder, **RECIPE)


def publish(folder: Path) -> None:
    record = json.loads((folder / "result.json").read_text())
    model = katlib.load_pretrained(folder / "checkpoint.safetensors")
    OURS[NAME].parent.mkdir(exist_ok=True)
    save_pretrained(model, OURS[NAME], mean=MEAN, std=STD, classes=CLASSES, license="MIT", training={key: record[key] for key in (
        "preset", "mlp", "seed", "config", "commit", "date", "torch", "device_name", "data_sha256")})
    write_json(FOLDER / f"{PRESET}-grkan-seed0-{EPOCHS}epochs.json", record)
    shutil.copyfile(folder / "inside.json", FOLDER / f"inside-{NAME}.json")
    data = katlib.load_cifar10()
    for title, judged in (("as trained", model), ("in float16", katlib.load_pretrained(NAME))):
        loss, accuracy = evaluate(judged, data.test_images, data.test_labels)
        print(f"{title}: {accuracy:.2%} of 10,000 test images, loss {loss:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    (fit if options.train else publish)(options.folder)
