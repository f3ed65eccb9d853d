"""The study behind chapter 13: a KAT beside its MLP twins, and one change of the KAT at a time, several seeds each.

    python benchmarks/study.py run                  trains what is missing, writes results/study/CONDITION-seedN.json
    python benchmarks/study.py run --again          the KAT and its twin, at both rates, from five seeds that the study has not seen: results/study-again
    python benchmarks/study.py cost                 times a training step of each and counts the bytes kept for backward: results/study-cost-DEVICE.json

On a GPU: python benchmarks/study.py run --preset cifar-small --epochs 50 --seeds 0 1 2 3 4. The peak learning rate was tried on the last 5,000
training images (results/study-lr.json, `python benchmarks/study.py lr`): the twin was best at 2e-3, which all conditions get, and the KAT at
4e-3, so that these two are run at both.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch
from timing import RESULTS, quantiles, ratio, slug, store, turns
from torch.nn import functional as F

from katlib.files import write_json
from katlib.train import train
from katlib.train.data import CIFAR10, load_cifar10
from katlib.train.recipe import PRESETS, Config, build_model, build_optimizer

PRESET, EPOCHS, LR = "cifar-pico", 4, 2e-3
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def equal_flops(config: Config) -> float:
    """The mlp_ratio at which the twin's matrices have the FLOPs of the KAT's matrices and rational functions, 2m + 2n + 3 for each (arXiv 2409.10594,
    table 2). GELU counts as nothing, in the twin's favour."""
    C, (m, n) = config.embed_dim, config.degrees
    hidden = int(config.mlp_ratio * C)
    extra = (2 * m + 2 * n + 3) * (C + hidden)
    return (hidden + round(extra / (4 * C))) / C


# name: (title, mlp, fields of Config)
CONDITIONS: dict[str, tuple[str, str, dict]] = {
    "kat": ("KAT", "grkan", {}),
    "mlp": ("MLP twin, equal parameters", "mlp", {}),
    "mlp-flops": ("MLP twin, equal FLOPs", "mlp", {"mlp_ratio": equal_flops}),
    "kat-lr4": ("KAT, learning rate 4e-3", "grkan", {"lr": 4e-3}),
    "mlp-lr4": ("MLP twin, learning rate 4e-3", "mlp", {"lr": 4e-3}),
    "std02": ("weights of std .02", "grkan", {"weight_std": 0.02}),
    "frozen": ("frozen functions", "grkan", {"learned": False}),
    "init-identity-identity": (
        "identity, identity",
        "grkan",
        {"act_init": ("identity", "identity")},
    ),
    "init-swish-swish": ("swish, swish", "grkan", {"act_init": ("swish", "swish")}),
    "init-identity-gelu": ("identity, GELU", "grkan", {"act_init": ("identity", "gelu")}),
    "init-released-gelu": (
        "identity, the released “gelu”",
        "grkan",
        {"act_init": ("identity", "released-gelu")},
    ),
    "groups-1": ("1 group", "grkan", {"groups": 1}),
    "groups-4": ("4 groups", "grkan", {"groups": 4}),
    "groups-16": ("16 groups", "grkan", {"groups": 16}),
    "numerators-8": ("8 numerators", "grkan", {"numerator_groups": 8}),
    "degrees-3-2": ("degrees (3, 2)", "grkan", {"degrees": (3, 2)}),
    "degrees-7-6": ("degrees (7, 6)", "grkan", {"degrees": (7, 6)}),
    "groups-channel": ("a denominator for each channel", "grkan", {"groups": None}),
}
FIVE = ("kat", "mlp")  # these get two seeds more
AGAIN = ("kat", "mlp", "kat-lr4", "mlp-lr4")  # and these another five with --again


def recipe(name: str, preset: str) -> dict:
    fields = dict(CONDITIONS[name][2])
    if callable(fields.get("mlp_ratio")):
        fields["mlp_ratio"] = fields["mlp_ratio"](PRESETS[preset])
    return fields


def run(options) -> None:
    folder = RESULTS / (
        ("study" if options.preset == PRESET else f"study-{options.preset}")
        + ("-again" if options.again else "")
    )
    folder.mkdir(exist_ok=True)
    data = load_cifar10()
    plan = (
        [(seed, name) for seed in range(5, 10) for name in AGAIN]
        if options.again
        else [(seed, name) for seed in options.seeds for name in options.conditions]
        if options.seeds
        else (
            [(seed, name) for seed in (0, 1, 2) for name in options.conditions]
            + [(seed, name) for seed in (3, 4) for name in FIVE]
        )
    )
    for seed, name in plan:
        path = folder / f"{name}-seed{seed}.json"
        if path.exists():
            continue
        title, mlp, _ = CONDITIONS[name]
        record = train(
            options.preset,
            mlp,
            options.epochs,
            seed,
            data=data,
            progress=False,
            **{"lr": options.lr} | recipe(name, options.preset),
        )
        for function in record["activations"].values():  # seven digits say what a float32 is
            for key, rows in function.items():
                function[key] = [[float(f"{value:.7g}") for value in row] for row in rows]
        if name == "groups-channel":
            del record["activations"]  # thousands of functions
        write_json(path, {"condition": name, "title": title} | record)
        print(
            f"{title}, seed {seed}: {record['test_accuracy']:.2%} in {record['wall_s']:.0f} s",
            flush=True,
        )


def tried(arguments: tuple[str, float, str]) -> dict:
    """One learning rate of one model: the accuracy on the training images that were held out."""
    mlp, rate, preset = arguments
    torch.set_num_threads(1)
    data = load_cifar10(progress=False)
    held_out = CIFAR10(
        data.train_images[:45000],
        data.train_labels[:45000],
        data.train_images[45000:],
        data.train_labels[45000:],
        data.sha256,
    )
    record = train(preset, mlp, 5, seed=100, data=held_out, device="cpu", progress=False, lr=rate)
    print(f"{mlp}, lr {rate}: {record['test_accuracy']:.2%} of the held-out images", flush=True)
    return {"mlp": mlp, "lr": rate, "accuracy": record["test_accuracy"], "config": record["config"]}


def lr(options) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        rows = list(
            pool.map(
                tried, [(mlp, rate, options.preset) for rate in RATES for mlp in ("grkan", "mlp")]
            )
        )
    store(
        "study-lr",
        "accuracy on the last 5,000 training images after 5 epochs of the others, seed 100",
        torch.device("cpu"),
        1,
        rows,
    )


def kept_bytes(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of the tensors that forward keeps for backward, each storage once, parameters not counted."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(
            model(x), labels
        )  # alive until here, so that no two share an address
    del loss
    return sum(kept.values())


def cost(options) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, labels = (
        torch.randn(128, 3, 32, 32, device=device),
        torch.randint(0, 10, (128,), device=device),
    )
    ways, models = {}, {}
    for name, (title, mlp, _) in CONDITIONS.items():
        config = replace(PRESETS[options.preset], **recipe(name, options.preset))
        models[name] = build_model(config, mlp).to(device)
        optimizer = build_optimizer(models[name], config)

        def step(model=models[name], optimizer=optimizer) -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(x)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        ways[name] = step
    times = turns(ways, device, options.rounds)
    rows = [
        {
            "condition": name,
            "title": CONDITIONS[name][0],
            "ms": quantiles(times[name]),
            "ratio_to_mlp": ratio(times, name, "mlp"),
            "kept_bytes": kept_bytes(models[name], x, labels),
            "parameters": sum(p.numel() for p in models[name].parameters()),
        }
        for name in CONDITIONS
    ]
    for row in rows:
        print(
            f"{row['title']}: {row['ms']['p50']:.1f} ms, {row['ratio_to_mlp']:.2f} of the twin's, {row['kept_bytes'] / 2**20:.1f} MiB kept"
        )
    store(
        f"study-cost-{slug(device)}",
        f"training step of {options.preset}, batch 128",
        device,
        options.rounds,
        rows,
    )


def main() -> None:
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
    options = parser.parse_args()
    {"run": run, "cost": cost, "lr": lr}[options.what](options)


if __name__ == "__main__":
    main()
