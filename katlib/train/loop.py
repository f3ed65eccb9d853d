"""Trains a KAT, or its twin with MLPs, on CIFAR-10: one readable loop and its command line.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --seed 0 --out runs/kat
    torchrun --nproc-per-node 8 -m katlib.train --preset cifar-base --epochs 100

Everything random in an epoch - the order of the images, their augmentation, dropout - follows from the seed and the epoch's number, so
a run that was stopped and resumed gives the same numbers as one that was not. Several processes share each batch: they take the steps
that one process would take.
"""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.files import write_json
from katlib.provenance import device_name, git_commit
from katlib.train.checkpoint import load_checkpoint, save_checkpoint
from katlib.train.data import CIFAR10, load_cifar10, normalize
from katlib.train.recipe import (
    PRESETS,
    Average,
    Config,
    build_model,
    build_optimizer,
    learning_rate,
    prepare,
)
from katlib.train.record import learned_activations


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was not finite; the message names the step and the first layer where it happened."""


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes that train together."""
    return (
        (distributed.get_rank(), distributed.get_world_size())
        if distributed.is_available() and distributed.is_initialized()
        else (0, 1)
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500
) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction, over uint8 images (N, 3, 32, 32) on the model's device. Several processes
    share the work."""
    rank, world = processes()
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)  # loss, correct
    for x, y in list(zip(images.split(batch_size), labels.split(batch_size)))[rank::world]:
        logits = model(normalize(x)).float()
        sums += torch.tensor(
            [
                F.cross_entropy(logits, y, reduction="sum").item(),
                (logits.argmax(1) == y).sum().item(),
            ]
        )
    model.train(was_training)
    if world > 1:
        sums = sums.to(images.device)
        distributed.all_reduce(sums)
    loss, correct = (sums / len(labels)).tolist()
    return loss, correct


def first_nonfinite(model: nn.Module, x: Tensor) -> str:
    """The name of the first layer whose output is not finite, or of the first parameter whose gradient is not."""
    found: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda m, i, out, name=name: found.append(name) if not out.isfinite().all() else None
        )
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    gradients = [
        f"the gradient of {name}"
        for name, p in model.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    return (found + gradients + ["the loss"])[0]


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard=True needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(folder)


def train(
    preset: str | Config = "cifar-nano",
    mlp: str = "grkan",
    epochs: int = 3,
    seed: int = 0,
    limit: int | None = None,
    test_limit: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data: CIFAR10 | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    on_epoch: Callable[[nn.Module, dict], None] | None = None,
    compile: bool = False,
    tensorboard: bool = False,
    **recipe,
) -> dict:
    """Trains one model and returns its record, the dictionary that `results/*.json` hold.

    Args:
        preset: a name in `katlib.train.recipe.PRESETS`, or a `Config`.
        mlp: "grkan" for a KAT, "mlp" for its twin.
        epochs: passes over the training images; the learning-rate schedule ends with the last.
        seed: of weights, order and augmentation.
        limit, test_limit: use the first so many training and test images; None for all.
        out: folder for `metrics.jsonl` (a line an epoch), `checkpoint.safetensors` and `result.json`; None keeps nothing.
        resume: go on from the checkpoint in `out`, if there is one.
        data: default: `load_cifar10()`.
        device: default: the GPU if there is one, else the CPU. On a GPU the model computes in bfloat16 under autocast.
        progress: show a bar for each epoch.
        on_epoch: called after each epoch with the model that was evaluated and the epoch's metrics.
        compile: `torch.compile` the model.
        tensorboard: write the metrics for TensorBoard, too, into `out`.
        recipe: fields of `Config`, instead of the preset's: `groups=4`, `lr=2e-3`.

    Raises:
        ValueError: an unknown preset or field, or a checkpoint of another run in `out`.
        TrainingDiverged: a loss or gradient that is not finite.
        OSError: `out` cannot be written, say because the disk is full; the last checkpoint there is whole.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(
            f"preset={preset!r} is not known; allowed are {', '.join(map(repr, PRESETS))}"
        )
    if (
        epochs < 1
        or (limit is not None and limit < 1)
        or (test_limit is not None and test_limit < 1)
    ):
        raise ValueError(
            f"epochs={epochs}, limit={limit}, test_limit={test_limit}; all must be 1 or more"
        )
    if (resume or tensorboard) and out is None:
        raise ValueError("resume=True or tensorboard=True needs out=, the folder of the run")
    if unknown := set(recipe) - {f.name for f in fields(Config)}:
        raise ValueError(
            f"{sorted(unknown)} are not fields of Config; it has {', '.join(f.name for f in fields(Config))}"
        )
    config = replace(PRESETS[preset] if isinstance(preset, str) else preset, **recipe)
    rank, world = processes()
    if config.batch_size < world:
        raise ValueError(f"batch_size={config.batch_size} is too small for {world} processes")
    device = torch.device(
        device
        or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    )
    data = data or load_cifar10(progress=progress and rank == 0)
    images, labels = (t[:limit].to(device) for t in (data.train_images, data.train_labels))
    test_images, test_labels = (
        t[:test_limit].to(device) for t in (data.test_images, data.test_labels)
    )

    torch.manual_seed(seed)
    model = build_model(config, mlp).to(device)
    optimizer = build_optimizer(model, config)
    average = Average(model, config.ema) if config.ema else None
    steps = math.ceil(len(images) / config.batch_size)  # in an epoch
    run = {
        "preset": preset if isinstance(preset, str) else "custom",
        "mlp": mlp,
        "seed": seed,
        "config": json.loads(json.dumps(asdict(config)))
        | {"epochs": epochs, "train_images": len(images), "test_images": len(test_images)},
    }
    history: list[dict] = []
    folder, checkpoint = (Path(out), Path(out) / "checkpoint.safetensors") if out else (None, None)
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer, average)
        if state["run"] != run:
            raise ValueError(
                f"{checkpoint} belongs to another run: it is of {state['run']}, asked was {run}"
            )
        history = state["history"]
    if out and rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    writer = _tensorboard(folder) if tensorboard and rank == 0 else None
    network = torch.compile(model) if compile else model  # the same parameters
    if world > 1:
        network = nn.parallel.DistributedDataParallel(
            network, [device] if device.type == "cuda" else None
        )

    for epoch in range(len(history), epochs):
        started, started_cpu = time.perf_counter(), time.process_time()
        torch.manual_seed((1_000_003 * (seed + 1) + epoch) * world + rank)  # dropout
        generator = torch.Generator(device).manual_seed(1_000_003 * (seed + 1) + epoch)
        order = torch.randperm(len(images), generator=generator, device=device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, correct
        bar = tqdm(
            order.split(config.batch_size),
            desc=f"{mlp} epoch {epoch + 1}/{epochs}",
            disable=not progress or rank > 0,
            leave=False,
        )
        for i, batch in enumerate(bar):
            step = epoch * steps + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, epochs * steps, config)
            x, targets = prepare(
                images[batch], labels[batch], config, generator, seed=step
            )  # the whole batch, then this process's part of it
            x, targets, y = (t[rank::world] for t in (x, targets, labels[batch]))
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                logits = network(x)  # (B, 10)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            (
                loss * (len(y) * world / len(batch))
            ).backward()  # averaged over processes: the batch's mean
            norm = nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
            if not (loss + norm).isfinite():
                raise TrainingDiverged(
                    f"step {step} (epoch {epoch + 1}): not finite in {first_nonfinite(model, x)}; loss {loss.item()}, "
                    f"gradient norm {norm.item()}. Try a smaller learning rate than {config.lr}."
                )
            nn.utils.clip_grads_with_norm_(
                model.parameters(), config.clip_grad, norm
            )  # after the check: a NaN norm would spread to all
            optimizer.step()
            if average:
                average.update(model)
            sums += torch.stack([loss.detach() * len(y), (logits.argmax(1) == y).sum()])
            if i % 10 == 9 and not bar.disable:
                loss_mean, accuracy = (sums / (len(y) * (i + 1))).tolist()
                bar.set_postfix(loss=f"{loss_mean:.3f}", accuracy=f"{accuracy:.1%}")
        if world > 1:
            distributed.all_reduce(sums)
        train_loss, train_accuracy = (sums / len(order)).tolist()
        train_seconds = time.perf_counter() - started
        judged = average.model if average else model
        test_loss, test_accuracy = evaluate(judged, test_images, test_labels)
        history.append(
            {
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "lr": optimizer.param_groups[0]["lr"],
                "train_s": round(train_seconds, 3),
                "images_per_s": round(len(order) / train_seconds, 1),
                "cpu_s": round(time.process_time() - started_cpu, 3),
                "wall_s": round(time.perf_counter() - started, 3),
            }
        )
        if out and rank == 0:
            save_checkpoint(checkpoint, model, optimizer, {"run": run, "history": history}, average)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(history[-1]) + "\n")
        if writer:
            for name, value in history[-1].items():
                writer.add_scalar(name, value, epoch + 1)
            writer.flush()
        if on_epoch and rank == 0:
            on_epoch(judged, history[-1])

    record = run | {
        "epochs": history,
        "test_accuracy": history[-1]["test_accuracy"],
        "wall_s": round(sum(e["wall_s"] for e in history), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": world,
        "device_name": device_name(device),
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "data_sha256": data.sha256,
        "activations": learned_activations(average.model if average else model),
    }
    if out and rank == 0:
        write_json(folder / "result.json", record)
    return record
