"""What the examples share: their command line, a training loop, and the record that they leave."""

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from katlib.files import write_json
from katlib.provenance import device_name, git_commit
from katlib.train.recipe import Config, build_optimizer, learning_rate


def options(description: str, steps: int, batch: int) -> argparse.Namespace:
    """The command line of an example, with its default numbers of steps and samples."""
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
    loss_of_batch: Callable[[torch.Generator], Tensor],
    steps: int,
    seed: int,
    config: Config,
) -> dict:
    """Minimises a loss with AdamW, warm-up and cosine decay.

    Args:
        model: what is trained.
        loss_of_batch: the model's loss on a batch that it draws with the generator.
        steps: of the optimizer.
        seed: of the generator, so that models with the same seed see the same batches.
        config: learning rate, weight decay and clipping.

    Returns:
        The number of parameters, the mean loss of the last tenth of the steps, and the time.
    """
    # weight decay spares the coefficients of rational functions
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        loss = loss_of_batch(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        losses.append(loss.item())
    last_losses = losses[-max(1, steps // 10) :]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": sum(last_losses) / len(last_losses),
        "train_s": round(time.perf_counter() - started, 2),
    }


def store(
    path: Path | None, what: str, opts: argparse.Namespace, rows: list[dict], **details
) -> None:
    """Writes the record, with where and when it was made, if a path was given."""
    if path is None:
        return
    record = {
        "what": what,
        "steps": opts.steps,
        "batch": opts.batch,
        "device_name": device_name(torch.device(opts.device)),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        **details,
        "rows": rows,
    }
    write_json(path, record)
    print(f"written to {path}")
