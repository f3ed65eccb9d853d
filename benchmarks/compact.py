"""Evidence on a model worth having: a KAT of 0.55 million parameters, its opponents, its claims.

    python benchmarks/compact.py rates

chooses each condition's learning rates on held-out training images; writes
results/compact-rates/CONDITION-FACTOR.json.

    python benchmarks/compact.py run [--hours 2]

trains what is missing, in the order of `PLAN`; writes results/compact/CONDITION-seedN.json. A run
that was stopped goes on from its checkpoint in runs/compact.

The conditions have equal FLOPs: opponents without rational functions get a few hidden units more.
After each run the model is evaluated under shifted inputs and in half precision too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study import equal_flops, round_coefficients
from timing import RESULTS
from torch import Tensor, nn
from torchvision.transforms import v2

from katlib import load_pretrained
from katlib.files import write_json
from katlib.train import evaluate, train
from katlib.train.data import CIFAR10, load_cifar10
from katlib.train.recipe import PRESETS

PRESET = "cifar-compact"
FOLDER = RESULTS / "compact"
RATES_FOLDER = RESULTS / "compact-rates"
EPOCHS = 10

# the learning rates that are tried: these, times each of the factors
RATES = {"lr": 3e-3, "muon_lr": 0.02}
FACTORS = (0.5, 1.0, 2.0)
RATE_EPOCHS = 4
RATE_SEED = 100
HELD_OUT = 5_000

SHIFT_IMAGES = 2_000


class Condition(NamedTuple):
    """One line of the study.

    Args:
        title: what the book calls it.
        mlp: what stands in the MLP's place.
        changes: what differs from the preset, by the names that `Config.replace` takes.
        rates_of: the condition whose learning rates it takes; a change of the KAT takes the KAT's.
    """

    title: str
    mlp: str
    changes: dict[str, Any]
    rates_of: str


def opponent(name: str, title: str, mlp: str) -> Condition:
    """A model without rational functions, as wide as the KAT's FLOPs allow."""
    return Condition(title, mlp, {"mlp_ratio": equal_flops(PRESETS[PRESET])}, name)


def claim(title: str, **changes: Any) -> Condition:
    """The KAT with one change, which tests one claim of the paper."""
    return Condition(title, "grkan", changes, "kat")


CONDITIONS: dict[str, Condition] = {
    "kat": Condition("KAT (identity, swish)", "grkan", {}, "kat"),
    "kat-gelu": Condition(
        "KAT (identity, GELU)", "grkan", {"act_init": ("identity", "gelu")}, "kat-gelu"
    ),
    "mlp-gelu": opponent("mlp-gelu", "GELU MLP", "mlp"),
    "mlp-swiglu": opponent("mlp-swiglu", "SwiGLU", "swiglu"),
    "frozen-swish": Condition(
        "swish at both places, frozen",
        "grkan",
        {"act_init": ("swish", "swish"), "learned": False},
        "frozen-swish",
    ),
    "mlp-relu2": opponent("mlp-relu2", "squared ReLU MLP", "relu2"),
    "mlp-prelu": opponent("mlp-prelu", "PReLU MLP, a slope for each channel", "prelu"),
    "groups-1": claim("1 group", groups=1),
    "groups-channel": claim("a denominator for each channel", groups=None),
    "std02": claim("weights of std .02", weight_std=0.02),
    "frozen": claim("frozen functions", learned=False),
    "coefficients-lr3": claim("coefficients: 3 times the rate", coefficient_lr=3.0),
    "coefficients-lr10": claim("coefficients: 10 times the rate", coefficient_lr=10.0),
    "coefficients-decay": claim("coefficients: weight decay", coefficient_decay=0.05),
    "coefficients-late": claim("coefficients: frozen at first", frozen_until=0.3),
    "no-clipping": claim("no clipping of gradients", clip_grad=0.0),
}

# The runs in their order: what is done first matters most.
PLAN: list[tuple[str, int]] = [
    *[(name, seed) for seed in range(4) for name in ("kat", "mlp-gelu", "mlp-swiglu", "kat-gelu")],
    *[(name, seed) for seed in range(3) for name in ("frozen-swish", "mlp-relu2", "mlp-prelu")],
    *[(name, seed) for seed in range(3) for name in ("frozen", "std02", "groups-1")],
    *[("groups-channel", seed) for seed in range(3)],
    *[(name, 0) for name in CONDITIONS if name.startswith(("coefficients", "no-"))],
]


# ---- the learning rate


def rates(options: argparse.Namespace) -> None:
    """Trains every condition that has rates of its own at each of them, on held-out images."""
    own = [name for name, condition in CONDITIONS.items() if condition.rates_of == name]
    data = load_cifar10()
    for name in own:
        for factor in FACTORS:
            path = RATES_FOLDER / f"{name}-{factor}.json"
            if path.exists() or options.is_over():
                continue
            record = train_run(name, RATE_SEED, factor, RATE_EPOCHS, data, holdout=HELD_OUT)
            del record["activations"]
            store(path, record | {"factor": factor})


def best_factor(name: str, folder: Path | None = None) -> float:
    """The factor of the learning rates at which a condition was best on the held-out images.

    Raises:
        FileNotFoundError: not all factors have been tried.
    """
    folder = folder or RATES_FOLDER
    condition = CONDITIONS[name]
    accuracies = {}
    for factor in FACTORS:
        path = folder / f"{condition.rates_of}-{factor}.json"
        accuracies[factor] = json.loads(path.read_text(encoding="utf-8"))["test_accuracy"]
    return max(accuracies, key=lambda factor: accuracies[factor])


# ---- the runs


def run(options: argparse.Namespace) -> None:
    """Trains every run of the plan that has no file yet."""
    data = load_cifar10()
    for name, seed in PLAN:
        path = FOLDER / f"{name}-seed{seed}.json"
        if path.exists() or options.is_over():
            continue
        record = train_run(name, seed, best_factor(name), options.epochs, data)
        if name == "groups-channel":
            # thousands of functions
            del record["activations"]
        else:
            round_coefficients(record["activations"])
        store(path, record)


def train_run(
    name: str, seed: int, factor: float, epochs: int, data: CIFAR10, holdout: int = 0
) -> dict[str, Any]:
    """Trains one run, or goes on with it; returns its record."""
    condition = CONDITIONS[name]
    rates = {name: factor * rate for name, rate in RATES.items()}
    out = Path("runs/compact") / f"{name}-seed{seed}-{factor}-{epochs}-{holdout}"
    record = train(
        PRESET,
        condition.mlp,
        epochs,
        seed,
        data=data,
        holdout=holdout,
        out=out,
        resume=True,
        progress=False,
        **rates | condition.changes,
    )
    record = {"condition": name, "title": condition.title} | record
    if not holdout:
        model = load_pretrained(out / "checkpoint.safetensors")
        record["shifted"] = shifted_accuracies(model, data)
        record["precision"] = precision_accuracies(model, data)
    return record


def store(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)
    print(f"{path.stem}: {record['test_accuracy']:.2%} in {record['wall_s']:.0f} s", flush=True)


# ---- what a model does with other inputs than those that it was trained on

SHIFTS: dict[str, dict[float, Callable[[Tensor], Tensor]]] = {
    "noise": {s: v2.GaussianNoise(sigma=s) for s in (0.04, 0.08, 0.16)},
    "contrast": {s: lambda x, s=s: v2.functional.adjust_contrast(x, s) for s in (0.7, 0.5, 0.3)},
    "blur": {
        s: lambda x, s=s: v2.functional.gaussian_blur(x, [5, 5], [s, s]) for s in (0.5, 1.0, 1.5)
    },
    "brightness": {
        s: lambda x, s=s: v2.functional.adjust_brightness(x, s) for s in (0.7, 0.5, 0.3)
    },
}


def shifted_accuracies(model: nn.Module, data: CIFAR10) -> dict[str, dict[str, float]]:
    """Accuracy on the first test images under each shift, at three strengths."""
    images = data.test_images[:SHIFT_IMAGES].float() / 255
    labels = data.test_labels[:SHIFT_IMAGES]
    result = {}
    for name, strengths in SHIFTS.items():
        result[name] = {}
        for strength, shift in strengths.items():
            torch.manual_seed(0)
            shifted = (255 * shift(images).clamp(0, 1)).round().to(torch.uint8)
            result[name][str(strength)] = evaluate(model, shifted, labels)[1]
    result["none"] = {"0": evaluate(model, data.test_images[:SHIFT_IMAGES], labels)[1]}
    return result


def precision_accuracies(model: nn.Module, data: CIFAR10) -> dict[str, float]:
    """Accuracy on all test images under autocast to half types."""
    result = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with torch.autocast("cpu", dtype):
            result[name] = evaluate(model, data.test_images, data.test_labels)[1]
    return result


# ---- the command line


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rates", "run"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--hours", type=float, help="no run begins after this time")
    options = parser.parse_args(arguments)
    end = float("inf") if options.hours is None else time.monotonic() + 3600 * options.hours
    options.is_over = lambda: time.monotonic() > end
    return options


def main() -> None:
    options = parse_arguments()
    {"rates": rates, "run": run}[options.what](options)


if __name__ == "__main__":
    main()
