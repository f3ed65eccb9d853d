"""What the examples share: a loop of so many steps, and the record that they leave in results/."""

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import nn

from katlib.files import write_json
from katlib.provenance import device_name, git_commit
from katlib.train.recipe import Config, build_optimizer, learning_rate

RESULTS = Path(__file__).resolve().parents[1] / "results"


def options(description: str, steps: int, batch: int) -> argparse.Namespace:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"of the optimizer (default: {steps})"
    )
    parser.add_argument(
        "--batch", type=int, default=batch, help=f"samples in a step (default: {batch})"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="runs of each kind, with the seeds 0, 1, ... (default: 1)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, help="file for the record (default: none; the book's are in results/)"
    )
    return parser.parse_args()


def train(
    model: nn.Module,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    steps: int,
    seed: int,
    config: Config,
) -> dict:
    """Minimises `loss_of(generator)`, a loss on a batch that the generator draws; returns the mean loss of the last tenth, and the time."""
    optimizer = build_optimizer(model, config)  # AdamW; rational coefficients do not decay
    generator = torch.Generator().manual_seed(seed)  # the same batches for every kind of activation
    losses, started = [], time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        loss = loss_of(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": sum(last) / len(last),
        "train_s": round(time.perf_counter() - started, 2),
    }


def store(path: Path | None, what: str, opts: argparse.Namespace, rows: list[dict], **more) -> None:
    """Writes the record with where it was made, if there is a path for it."""
    if path:
        write_json(
            path,
            {
                "what": what,
                "steps": opts.steps,
                "batch": opts.batch,
                "device_name": device_name(torch.device(opts.device)),
                "torch": torch.__version__,
                "commit": git_commit(),
                "date": date.today().isoformat(),
                **more,
                "rows": rows,
            },
        )
        print(f"written to {path}")
