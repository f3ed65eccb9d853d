"""Times a training step of a KAT beside the same Vision Transformer with GELU MLPs.

    python benchmarks/model.py [--model B] [--batch 64] [--compile]

A step is forward, loss, backward and AdamW, under bfloat16 autocast on a GPU and in float32 on a
CPU. With --compile all models are timed once more afterwards, beside themselves under
torch.compile, and these rows take the place of the first ones. Writes results/model-DEVICE.json.
"""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace

import fake_gpu
import torch
from timing import parse_with_dry_run, quantiles, ratio, slug, store, turns
from torch import Tensor, nn
from torch.nn import functional as F

from katlib import VisionTransformer
from katlib.architecture import KAT_BASE, KAT_SMALL, KAT_TINY, Architecture

MODELS = {
    "nano": Architecture(
        img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_classes=10
    ),
    "T": KAT_TINY,
    "S": KAT_SMALL,
    "B": KAT_BASE,
}

# images in a step where none are asked for
BATCH_SIZES = {"nano": 128, "T": 256, "S": 128, "B": 64}

# what the two models are called in the results, and their `mlp`
MLP_OF_TITLE = {"KAT": "grkan", "ViT": "mlp"}

LABELS = 10


def build(architecture: Architecture, mlp: str) -> VisionTransformer:
    """A KAT or the ViT of the same sizes; their attention, embedding and head start the same."""
    torch.manual_seed(0)
    return VisionTransformer(**replace(architecture, mlp=mlp).as_dict())


def random_batch(img_size: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (batch, 3, img_size, img_size) and labels (batch,), drawn at random."""
    images = torch.randn(batch, 3, img_size, img_size, device=device)
    labels = torch.randint(0, LABELS, (batch,), device=device)
    return images, labels


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step of `model` as a function without arguments."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(name: str, batch: int, device: torch.device, rounds: int, compile: bool) -> dict:
    """One row of the result: the KAT and the ViT of one size."""
    architecture = MODELS[name]
    images, labels = random_batch(architecture.img_size, batch, device)
    ways = {}
    for title, mlp in MLP_OF_TITLE.items():
        model = build(architecture, mlp).to(device)
        ways[title] = training_step(model, images, labels)
        if compile:
            ways[f"{title} compiled"] = training_step(torch.compile(model), images, labels)
    times = turns(ways, device, rounds)
    row = {
        "model": name,
        "batch": batch,
        "ms": {way: quantiles(milliseconds) for way, milliseconds in times.items()},
        "ratio": ratio(times, "KAT", "ViT"),
    }
    if compile:
        row["ratio_compiled"] = ratio(times, "KAT compiled", "ViT compiled")
    return row


def print_row(row: dict) -> None:
    medians = ", ".join(f"{way} {ms['p50']:.1f} ms" for way, ms in row["ms"].items())
    print(
        f"{row['model']}, batch {row['batch']}: {medians}; KAT / ViT = {row['ratio']:.3f}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", nargs="*", choices=MODELS)
    parser.add_argument(
        "--batch", type=int, help="images; default: 256 for T, 128 for S, 64 for B, 128 for nano"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="time the models under torch.compile too"
    )
    return parse_with_dry_run(parser)


def measure_all(options: argparse.Namespace, device: torch.device) -> None:
    """Measures a row for each model; stores after each what there is until then."""
    default_models = ["nano"] if device.type == "cpu" or options.dry_run else ["T", "S", "B"]
    what = "training step, KAT and the same ViT with GELU MLPs"
    rows: dict[str, dict] = {}
    # compiling takes minutes, so all models have their eager rows first
    for compile in (False, True) if options.compile else (False,):
        for name in options.model or default_models:
            batch = 2 if options.dry_run else options.batch or BATCH_SIZES[name]
            rows[name] = measure(name, batch, device, options.rounds, compile)
            print_row(rows[name])
            store(f"model-{slug(device)}", what, device, options.rounds, list(rows.values()))


def main() -> None:
    options = parse_arguments()
    with fake_gpu.rehearsal() if options.dry_run else contextlib.nullcontext():
        measure_all(options, torch.device(options.device))


if __name__ == "__main__":
    main()
