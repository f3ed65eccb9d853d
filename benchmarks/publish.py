"""Trains the model that comes with katlib, and its twin, and then publishes them.

    python benchmarks/publish.py --train runs/kat-cifar10

trains the KAT for 15 epochs, in an hour on one CPU core; it goes on where it was stopped.

    python benchmarks/publish.py runs/kat-cifar10

writes katlib/weights/kat-cifar10.safetensors, results/cifar-nano-grkan-seed0-15epochs.json and
results/inside-kat-cifar10.json.

    python benchmarks/publish.py --train --twin runs/mlp

trains the twin with MLPs in the same way.

    python benchmarks/publish.py --twin runs/mlp

writes results/cifar-nano-mlp-seed0-15epochs.json, and results/inside-twins.json: what each MLP and
the largest channel mean to either of the two models.

    python -m katlib.train --preset cifar-compact --epochs 64 --out runs/compact --resume
    python benchmarks/publish.py --compact runs/compact

trains the larger model that comes with katlib, in two hours on one CPU core, and writes
katlib/weights/kat-cifar10-compact.safetensors and results/cifar-compact-grkan-seed0.json. With
`--mlp mlp --mlp-ratio 1.6015625` the first trains its twin of equal FLOPs; of a twin the second
writes the record alone, results/cifar-compact-mlp-seed0.json.

    python benchmarks/publish.py --probe

writes the published weights' file anew, with what the model makes of the probe image in its header;
the weights stay as they are.
"""

import argparse
import copy
import json
import shutil
from datetime import date
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import katlib
from katlib.book.recorder import Recorder
from katlib.book.results import FOLDER
from katlib.files import write_json, write_whole
from katlib.images import CLASSES, MEAN, STD
from katlib.pretrained import OURS, save_pretrained
from katlib.probe import as_json, probe_outputs
from katlib.provenance import device_name, git_commit
from katlib.train import evaluate, train
from katlib.train.checkpoint import load_checkpoint
from katlib.train.data import CIFAR10, normalize
from katlib.train.recipe import PRESETS, build_model

NAME = "kat-cifar10"
COMPACT = "kat-cifar10-compact"
PRESET = "cifar-nano"
EPOCHS = 15
RECIPE = {"lr": 2e-3}

# the recorder and the search for large channels look at so many test images
LOOKED_AT = 256

# what the weights' file says of its training
TRAINING_KEYS = (
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


def run_file(mlp: str) -> Path:
    """Where the record of a training run is published."""
    return FOLDER / f"{PRESET}-{mlp}-seed0-{EPOCHS}epochs.json"


def new_model(mlp: str) -> nn.Module:
    return build_model(PRESETS[PRESET].replace(**RECIPE), mlp)


# ---- the KAT


def train_kat(folder: Path) -> None:
    """Trains the KAT; a recorder looks into it before the first epoch and after each."""
    data = katlib.load_cifar10()
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(data.test_images[:LOOKED_AT], folder / "inside.json")
    if not (folder / "checkpoint.safetensors").exists():
        # the model that `train` starts from
        torch.manual_seed(0)
        recorder(new_model("grkan"), {"epoch": 0})
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


def publish_kat(folder: Path) -> None:
    """Writes the weights, in float16, and the records; prints what float16 costs."""
    publish_weights(NAME, folder)
    write_json(run_file("grkan"), json.loads((folder / "result.json").read_text(encoding="utf-8")))
    with write_whole(FOLDER / f"inside-{NAME}.json") as temporary:
        shutil.copyfile(folder / "inside.json", temporary)


def publish_weights(name: str, folder: Path) -> None:
    """Writes the weights of a run, in float16; prints what float16 costs."""
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    model = katlib.load_pretrained(folder / "checkpoint.safetensors")
    OURS[name].parent.mkdir(exist_ok=True)
    save_pretrained(
        model,
        OURS[name],
        mean=MEAN,
        std=STD,
        classes=CLASSES,
        license="MIT",
        training={key: record[key] for key in TRAINING_KEYS},
    )
    data = katlib.load_cifar10()
    print_accuracy("as trained", model, data)
    print_accuracy("in float16", katlib.load_pretrained(name), data)


def publish_compact(folder: Path) -> None:
    """Writes the record of a run of the compact model; of a KAT its weights too."""
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    write_json(FOLDER / f"{record['preset']}-{record['mlp']}-seed{record['seed']}.json", record)
    if record["mlp"] == "grkan":
        publish_weights(COMPACT, folder)


def add_probe() -> None:
    """Puts the outputs for the probe image into the header of the published file."""
    path = OURS[NAME]
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    model = katlib.load_pretrained(NAME)
    outputs = probe_outputs(model, model.architecture.in_chans, model.architecture.img_size)
    with write_whole(path) as temporary:
        save_file(tensors, temporary, header | {"probe": json.dumps(as_json(outputs))})


def print_accuracy(title: str, model: nn.Module, data: CIFAR10) -> None:
    loss, accuracy = evaluate(model, data.test_images, data.test_labels)
    print(f"{title}: {accuracy:.2%} of 10,000 test images, loss {loss:.4f}")


# ---- the KAT beside its twin


def train_twin(folder: Path) -> None:
    train(PRESET, "mlp", EPOCHS, seed=0, out=folder, resume=True, **RECIPE)


def publish_twin(folder: Path) -> None:
    """Writes the record of the twin, and what each MLP means to the KAT and to the twin."""
    write_json(run_file("mlp"), json.loads((folder / "result.json").read_text(encoding="utf-8")))
    data = katlib.load_cifar10()
    twin = new_model("mlp")
    load_checkpoint(folder / "checkpoint.safetensors", twin)
    models = {
        "KAT": look_inside(katlib.load_pretrained(NAME), data),
        "MLP twin": look_inside(twin.eval(), data),
    }
    for title, found in models.items():
        print(title, json.dumps(found))
    record = {
        "what": f"{NAME} and its twin: without each MLP, and their largest channels",
        "device_name": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "models": models,
    }
    write_json(FOLDER / "inside-twins.json", record)


@torch.no_grad()
def look_inside(model: nn.Module, data: CIFAR10) -> dict:
    """What the MLPs of a trained model do.

    Returns:
        The accuracy on all test images, the accuracy without the MLP of each block in turn, and for
        each block the `largest_channel` of its MLP's input.
    """
    blocks = range(len(model.blocks))
    return {
        "accuracy": accuracy_on_test_images(model, data),
        "without_mlp": [
            accuracy_on_test_images(without_mlp(model, block), data) for block in blocks
        ],
        "largest_channel": [largest_channel(mlp_input(model, block, data)) for block in blocks],
    }


def accuracy_on_test_images(model: nn.Module, data: CIFAR10) -> float:
    _, accuracy = evaluate(model, data.test_images, data.test_labels)
    return accuracy


def without_mlp(model: nn.Module, block: int) -> nn.Module:
    """A copy of the model in which the MLP of one block adds nothing."""
    changed = copy.deepcopy(model)
    for parameter in changed.blocks[block].mlp.fc2.parameters():
        parameter.zero_()
    return changed


def mlp_input(model: nn.Module, block: int, data: CIFAR10) -> Tensor:
    """What the MLP of a block receives for some test images: (images, tokens, C), float64."""
    outputs: list[Tensor] = []

    def keep_output(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        outputs.append(output)

    hook = model.blocks[block].norm2.register_forward_hook(keep_output)
    model(normalize(data.test_images[:LOOKED_AT]))
    hook.remove()
    return outputs[0].double()


def largest_channel(x: Tensor) -> dict:
    """The channel of x (images, tokens, C) with the largest mean square.

    Returns:
        Its number, mean and standard deviation, and its share of a token's squared length.
    """
    mean_squares = x.square().mean((0, 1))  # (C,)
    channel = int(mean_squares.argmax())
    values = x[..., channel]
    squared_length = x.square().sum(-1).mean()
    return {
        "channel": channel,
        "mean": values.mean().item(),
        "std": values.std().item(),
        "share": (values.square().mean() / squared_length).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--compact", action="store_true")
    parser.add_argument("--probe", action="store_true")
    options = parser.parse_args()
    if options.probe:
        add_probe()
        return
    if options.folder is None:
        parser.error("the folder of the training run is missing")
    if options.compact:
        action = publish_compact
    elif options.twin:
        action = train_twin if options.train else publish_twin
    else:
        action = train_kat if options.train else publish_kat
    action(options.folder)


if __name__ == "__main__":
    main()
