"""The study behind chapter 13: a KAT beside its MLP twins, and one change of the KAT at a time.

    python benchmarks/study.py run

trains what is missing, each condition from several seeds; writes
results/study/CONDITION-seedN.json.

    python benchmarks/study.py run --again

trains the KAT and its twin, at both learning rates, from five seeds that the study has not seen;
writes into results/study-again.

    python benchmarks/study.py cost

times a training step of each condition and counts the bytes kept for backward; writes
results/study-cost-DEVICE.json.

    python benchmarks/study.py lr

tries peak learning rates on the last 5,000 training images; writes results/study-lr.json. The twin
was best at 2e-3, which all conditions get. The KAT was best at 4e-3, so these two are run at both.

On a GPU: python benchmarks/study.py run --preset cifar-small --epochs 50 --seeds 0 1 2 3 4
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import RESULTS, quantiles, ratio, slug, store, turns
from torch import Tensor, nn
from torch.nn import functional as F

from katlib.files import write_json
from katlib.train import train
from katlib.train.data import CIFAR10, load_cifar10
from katlib.train.recipe import PRESETS, Config, build_model, build_optimizer

PRESET = "cifar-pico"
EPOCHS = 4
LR = 2e-3

# the peak learning rates that are tried, on so many training images, for so many epochs
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
LR_TRAIN_IMAGES = 45_000
LR_EPOCHS = 5
LR_SEED = 100

COST_BATCH = 128


class Condition(NamedTuple):
    """One line of the study.

    Args:
        title: what the book calls it.
        mlp: "grkan" or "mlp".
        changes: what differs from the preset, by the names that `Config.replace` takes. The value
            of `mlp_ratio` may be a function of the preset's `Config`.
    """

    title: str
    mlp: str
    changes: dict[str, Any]


def kat(title: str, **changes) -> Condition:
    return Condition(title, "grkan", changes)


def twin(title: str, **changes) -> Condition:
    return Condition(title, "mlp", changes)


def equal_flops(config: Config) -> float:
    """The mlp_ratio at which the twin has the FLOPs of the KAT.

    Counted are the matrices and, for each value of a rational function, 2m + 2n + 3 FLOPs (arXiv
    2409.10594, table 2). GELU counts as nothing, in the twin's favour.
    """
    channels = config.architecture.embed_dim
    hidden = config.architecture.hidden_features
    m, n = config.architecture.degrees
    flops_of_functions = (2 * m + 2 * n + 3) * (channels + hidden)
    # a hidden unit costs 2 FLOPs for each weight of its row and of its column
    extra_units = round(flops_of_functions / (4 * channels))
    return (hidden + extra_units) / channels


CONDITIONS: dict[str, Condition] = {
    "kat": kat("KAT"),
    "mlp": twin("MLP twin, equal parameters"),
    "mlp-flops": twin("MLP twin, equal FLOPs", mlp_ratio=equal_flops),
    "kat-lr4": kat("KAT, learning rate 4e-3", lr=4e-3),
    "mlp-lr4": twin("MLP twin, learning rate 4e-3", lr=4e-3),
    "std02": kat("weights of std .02", weight_std=0.02),
    "frozen": kat("frozen functions", learned=False),
    "init-identity-identity": kat("identity, identity", act_init=("identity", "identity")),
    "init-swish-swish": kat("swish, swish", act_init=("swish", "swish")),
    "init-identity-gelu": kat("identity, GELU", act_init=("identity", "gelu")),
    "init-released-gelu": kat(
        "identity, the released “gelu”", act_init=("identity", "released-gelu")
    ),
    "groups-1": kat("1 group", groups=1),
    "groups-4": kat("4 groups", groups=4),
    "groups-16": kat("16 groups", groups=16),
    "numerators-8": kat("8 numerators", numerator_groups=8),
    "degrees-3-2": kat("degrees (3, 2)", degrees=(3, 2)),
    "degrees-7-6": kat("degrees (7, 6)", degrees=(7, 6)),
    "groups-channel": kat("a denominator for each channel", groups=None),
}

SEEDS = (0, 1, 2)

# these get two seeds more
FIVE = ("kat", "mlp")
MORE_SEEDS = (3, 4)

# and these another five with --again
AGAIN = ("kat", "mlp", "kat-lr4", "mlp-lr4")
AGAIN_SEEDS = range(5, 10)


def recipe(name: str, preset: str) -> dict[str, Any]:
    """What the condition changes in a preset, as arguments of `Config.replace`."""
    changes = dict(CONDITIONS[name].changes)
    if callable(changes.get("mlp_ratio")):
        changes["mlp_ratio"] = changes["mlp_ratio"](PRESETS[preset])
    return changes


# ---- the runs


def run(options: argparse.Namespace) -> None:
    """Trains every run of the plan that has no file yet."""
    folder = folder_of(options)
    folder.mkdir(exist_ok=True)
    data = load_cifar10()
    for seed, name in plan(options):
        path = folder / f"{name}-seed{seed}.json"
        if path.exists():
            continue
        record = train_condition(name, seed, data, options)
        write_json(path, record)
        print(
            f"{record['title']}, seed {seed}: {record['test_accuracy']:.2%} "
            f"in {record['wall_s']:.0f} s",
            flush=True,
        )


def folder_of(options: argparse.Namespace) -> Path:
    name = "study" if options.preset == PRESET else f"study-{options.preset}"
    return RESULTS / (f"{name}-again" if options.again else name)


def plan(options: argparse.Namespace) -> list[tuple[int, str]]:
    """The runs in their order, as seeds and conditions: all conditions of one seed, then the next.

    A study that is stopped half-way has then compared all conditions, from fewer seeds.
    """
    if options.again:
        return [(seed, name) for seed in AGAIN_SEEDS for name in AGAIN]
    runs = [(seed, name) for seed in options.seeds or SEEDS for name in options.conditions]
    if not options.seeds:
        runs += [(seed, name) for seed in MORE_SEEDS for name in FIVE]
    return runs


def train_condition(name: str, seed: int, data: CIFAR10, options: argparse.Namespace) -> dict:
    """Trains one run; returns its record."""
    condition = CONDITIONS[name]
    record = train(
        options.preset,
        condition.mlp,
        options.epochs,
        seed,
        data=data,
        progress=False,
        **({"lr": options.lr} | recipe(name, options.preset)),
    )
    if name == "groups-channel":
        # thousands of functions
        del record["activations"]
    else:
        round_coefficients(record["activations"])
    return {"condition": name, "title": condition.title} | record


def round_coefficients(activations: dict[str, dict[str, list]]) -> None:
    """Rounds to seven digits, which say what a float32 is."""
    for coefficients in activations.values():
        for key, rows in coefficients.items():
            coefficients[key] = [[float(f"{value:.7g}") for value in row] for row in rows]


# ---- the learning rate


def lr(options: argparse.Namespace) -> None:
    """Tries all learning rates for the KAT and its twin, two runs at a time."""
    runs = [(mlp, rate, options.preset) for rate in RATES for mlp in ("grkan", "mlp")]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(try_rate, *zip(*runs)))
    what = "accuracy on the last 5,000 training images after 5 epochs of the others, seed 100"
    store("study-lr", what, torch.device("cpu"), 1, rows)


def try_rate(mlp: str, rate: float, preset: str) -> dict:
    """The accuracy of one model at one learning rate on the images that were held out."""
    torch.set_num_threads(1)
    record = train(
        preset,
        mlp,
        LR_EPOCHS,
        seed=LR_SEED,
        data=with_training_images_held_out(load_cifar10(progress=False)),
        device="cpu",
        progress=False,
        lr=rate,
    )
    print(f"{mlp}, lr {rate}: {record['test_accuracy']:.2%} of the held-out images", flush=True)
    return {"mlp": mlp, "lr": rate, "accuracy": record["test_accuracy"], "config": record["config"]}


def with_training_images_held_out(data: CIFAR10) -> CIFAR10:
    """The data with its last training images in place of the test images."""
    return CIFAR10(
        data.train_images[:LR_TRAIN_IMAGES],
        data.train_labels[:LR_TRAIN_IMAGES],
        data.train_images[LR_TRAIN_IMAGES:],
        data.train_labels[LR_TRAIN_IMAGES:],
        data.sha256,
    )


# ---- what a step costs


def cost(options: argparse.Namespace) -> None:
    """Times a training step of every condition, and counts the bytes that it keeps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(COST_BATCH, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (COST_BATCH,), device=device)
    models = {}
    ways = {}
    for name, condition in CONDITIONS.items():
        changes = recipe(name, options.preset)
        config = PRESETS[options.preset].replace(mlp=condition.mlp, **changes)
        models[name] = build_model(config, condition.mlp).to(device)
        ways[name] = training_step(models[name], config, images, labels)
    times = turns(ways, device, options.rounds)
    rows = [
        {
            "condition": name,
            "title": condition.title,
            "ms": quantiles(times[name]),
            "ratio_to_mlp": ratio(times, name, "mlp"),
            "kept_bytes": kept_bytes(models[name], images, labels),
            "parameters": sum(p.numel() for p in models[name].parameters()),
        }
        for name, condition in CONDITIONS.items()
    ]
    for row in rows:
        print(
            f"{row['title']}: {row['ms']['p50']:.1f} ms, {row['ratio_to_mlp']:.2f} of the twin's, "
            f"{row['kept_bytes'] / 2**20:.1f} MiB kept"
        )
    what = f"training step of {options.preset}, batch {COST_BATCH}"
    store(f"study-cost-{slug(device)}", what, device, options.rounds, rows)


def training_step(
    model: nn.Module, config: Config, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    """A training step with the study's optimizer, as a function without arguments."""
    optimizer = build_optimizer(model, config)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def kept_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes of the tensors that forward keeps for backward.

    Each storage counts once, and parameters do not count.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, unpack):
        # held until all are counted, so that no two of them share an address
        loss = F.cross_entropy(model(images), labels)
    del loss
    return sum(kept.values())


# ---- the command line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cost", "lr"))
    parser.add_argument("--preset", choices=PRESETS, default=PRESET)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument(
        "--seeds", type=int, nargs="*", help="default: 0 1 2, and 3 4 for the KAT and its twin"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="the KAT and its twin once more, at both learning rates, from seeds 5 to 9",
    )
    parser.add_argument("--conditions", nargs="*", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.what == "run":
        run(options)
    elif options.what == "cost":
        cost(options)
    else:
        lr(options)


if __name__ == "__main__":
    main()
