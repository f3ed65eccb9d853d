"""Trains a KAT, or its twin with MLPs, on CIFAR-10 or on images of one's own.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --seed 0 --out runs/kat
    torchrun --nproc-per-node 8 -m katlib.train --preset cifar-base --epochs 100
    python -m katlib.train --images flowers --img-size 64 --patch-size 8 --out runs/flowers

Everything random in an epoch (the order of the images, their augmentation, dropout) follows from
the seed and the epoch's number, so a run that was stopped and resumed gives the same numbers as one
that was not. Several processes share each batch: they take the steps that one process would take.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.files import user_path, write_json, write_text
from katlib.train.checkpoint import (
    check_same_run,
    load_checkpoint,
    load_state,
    save_checkpoint,
    stages_of,
)
from katlib.train.data import CLASSES, MEAN, STD, load_cifar10, normalize
from katlib.train.images import ImageData
from katlib.train.recipe import (
    CIFAR10_SIZES,
    Average,
    Combined,
    Config,
    build_optimizer,
    prepare,
    set_learning_rates,
)
from katlib.train.record import final_record
from katlib.train.start import (
    autocast_dtype,
    check_arguments,
    choose_config,
    choose_device,
    new_model,
    read_first_weights,
    trained_network,
)
from katlib.vit import VisionTransformer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT = "checkpoint.safetensors"

# the metrics of an epoch, a line of metrics.jsonl
Metrics = dict[str, Any]


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was not finite.

    The message names the step and the first layer where it happened.
    """


def train(
    preset: str | Config = "cifar-nano",
    mlp: str | None = None,
    epochs: int = 3,
    seed: int = 0,
    limit: int | None = None,
    test_limit: int | None = None,
    holdout: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    data: ImageData | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    on_epoch: Callable[[nn.Module, Metrics], object] | None = None,
    compile: bool = False,
    tensorboard: bool = False,
    init_from: str | os.PathLike | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains one model.

    Args:
        preset: a name in `katlib.train.recipe.PRESETS`, or a `Config`.
        mlp: "grkan" for a KAT, "mlp" for its twin; default: the preset's, which is "grkan" for all
            named ones.
        epochs: passes over the training images; the learning-rate schedule ends with the last.
        seed: of weights, order and augmentation.
        limit, test_limit: use the first so many training and test images; None for all.
        holdout: take the last so many of all training images away from training, and evaluate on
            them in place of the test images; for choosing a recipe.
        out: folder for `metrics.jsonl` (one line for each epoch), `checkpoint.safetensors` and
            `result.json`; None keeps nothing.
        resume: go on from the checkpoint in `out`, if there is one. With the same arguments the
            numbers are those of a run that was not stopped. With more `epochs` than before, which
            counts those that are done, the run goes on with the learning rates that a run of
            `epochs` epochs has from there on, and the record's `config["stages"]` says so.
        data: default: `load_cifar10()`; or an `ImageData`, say from `load_image_folder`. The size
            of its images, their channels and the number of classes become the model's.
        device: default: the GPU if there is one, else the CPU.
        progress: show a bar for each epoch.
        on_epoch: called after each epoch with the model that was evaluated and the epoch's metrics.
        compile: `torch.compile` the model.
        tensorboard: write the metrics for TensorBoard, too, into `out`.
        init_from: weights to start from: a name or a file, as for `katlib.load_pretrained`, also
            the checkpoint of another run. The model is theirs, whatever the preset's is; for other
            classes it gets a new head, and for another size of images its position embedding is
            resampled.
        recipe: values of the config instead of the preset's, under their flat names (see
            `Config.replace`): `groups=4`, `lr=2e-3`.

    Returns:
        The run's record, the dictionary that `results/*.json` hold.

    Raises:
        ValueError: an unknown preset or field, a value that is not allowed, a class without a
            training image, or a checkpoint of another run in `out`.
        TrainingDiverged: a loss or gradient that is not finite.
        OSError: `out` cannot be written, say because the disk is full; the last checkpoint there is
            whole.

    Example:
        >>> from katlib.train import train
        >>> record = train("cifar-pico", epochs=1, limit=256, test_limit=100, progress=False)
        >>> record["parameters"], len(record["epochs"])
        (214522, 1)
    """
    needs_out = resume or tensorboard
    check_arguments(preset, epochs, seed, limit, test_limit, holdout, out, needs_out)
    rank, world = processes()
    device = choose_device(device)
    show_progress = progress and rank == 0
    # before CIFAR-10 is read, so that an impossible model is an error at once
    sizes, classes = (CIFAR10_SIZES, CLASSES) if data is None else (data.sizes, data.classes)
    if data is not None:
        data.check_classes()
    weights = None if init_from is None else read_first_weights(init_from, sizes, classes)
    config = choose_config(preset, mlp, recipe, sizes, weights)
    if config.batch_size < world:
        raise ValueError(f"batch_size={config.batch_size} is too small for {world} processes")
    model = new_model(config, seed, device, weights)
    data = load_cifar10(progress=show_progress) if data is None else data
    data = _select(_held_out(data, holdout), limit, test_limit, device)
    dtype = autocast_dtype(config.precision, device)
    run = Run(
        config=config,
        preset=preset if isinstance(preset, str) else "custom",
        epochs=epochs,
        seed=seed,
        holdout=holdout,
        data=data,
        device=device,
        autocast_dtype=dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        model=model,
        network=trained_network(model, device, world, compile),
        optimizer=build_optimizer(model, config),
        average=Average(model, config.ema) if config.ema else None,
        stages=[{"first_epoch": 1, "epochs": epochs}],
        init_from=None if weights is None else weights.description,
        folder=user_path(out) if out else None,
        show_progress=show_progress,
        rank=rank,
        world=world,
    )
    if resume:
        _resume(run)
    _start_files(run, tensorboard)
    for epoch in range(len(run.history), epochs):
        run.history.append(_run_epoch(run, epoch))
        _store_epoch(run)
        if on_epoch is not None and rank == 0:
            on_epoch(run.evaluated_model, run.history[-1])
    return _finish(run)


@dataclass
class Run:
    """What the steps of one training run share.

    Attributes:
        config: the model and its recipe.
        preset: the name of the preset, or "custom".
        epochs, seed, holdout: as given to `train`.
        data: the images that are used, on the device.
        stages: from which epoch on (counted from 1) the learning rates are those of a run of how
            many epochs; one, unless the run went on for other epochs than it began with.
        init_from: the weights that it started from, if they were given.
        device: where the model computes.
        autocast_dtype: in which type it computes where autocast lets it; None for float32.
        scaler: of the loss, so that small gradients are not lost in float16; otherwise disabled.
        model: what is trained.
        network: the model as it is called in training, compiled or shared by processes; it has the
            same parameters.
        optimizer: of the model.
        average: of the model's weights, if they are averaged.
        folder: where the run is kept, if it is.
        show_progress: whether there is a bar for each epoch.
        rank, world: this process's number, and the number of processes.
        history: the metrics of the epochs so far.
        writer: of TensorBoard's files, if they were asked for.
    """

    config: Config
    preset: str
    epochs: int
    seed: int
    holdout: int
    data: ImageData
    stages: list[dict[str, int]]
    init_from: dict[str, str] | None
    device: torch.device
    autocast_dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    model: VisionTransformer
    network: nn.Module
    optimizer: torch.optim.Optimizer | Combined
    average: Average | None
    folder: Path | None
    show_progress: bool
    rank: int
    world: int
    history: list[Metrics] = field(default_factory=list)
    writer: SummaryWriter | None = None

    @property
    def description(self) -> dict[str, Any]:
        """What was asked for; only a run of the same description goes on from a checkpoint."""
        images: dict[str, Any] = {
            "train_images": len(self.data.train_images),
            "test_images": len(self.data.test_images),
        }
        if self.holdout:
            images["holdout"] = self.holdout
        if len(self.stages) > 1:
            images["stages"] = self.stages
        start = {} if self.init_from is None else {"init_from": self.init_from}
        return {
            "preset": self.preset,
            "mlp": self.config.architecture.mlp,
            "seed": self.seed,
            "config": {**self.config.as_dict(), "epochs": self.epochs, **images},
            **self.data.description,
            **start,
        }

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train_images) / self.config.batch_size)

    def step_seed(self, step: int) -> int:
        """The seed of what torchvision's transforms draw in a step."""
        return 1_000_003 * (self.seed + 1) + step

    @property
    def evaluated_model(self) -> nn.Module:
        """The model with the averaged weights, if they are averaged."""
        return self.model if self.average is None else self.average.model

    @property
    def written_folder(self) -> Path | None:
        """The folder if this process writes into it: one does."""
        return self.folder if self.rank == 0 else None


# ---- before the first epoch


def _held_out(data: ImageData, holdout: int) -> ImageData:
    """The same data with the last training images in place of the test images."""
    if holdout == 0:
        return data
    if holdout >= len(data.train_images):
        raise ValueError(
            f"holdout={holdout} leaves none of the {len(data.train_images)} training images"
        )
    return replace(
        data,
        train_images=data.train_images[:-holdout],
        train_labels=data.train_labels[:-holdout],
        test_images=data.train_images[-holdout:],
        test_labels=data.train_labels[-holdout:],
    )


def _select(
    data: ImageData, limit: int | None, test_limit: int | None, device: torch.device
) -> ImageData:
    """The first images of each split, on the device."""
    return replace(
        data,
        train_images=data.train_images[:limit].to(device),
        train_labels=data.train_labels[:limit].to(device),
        test_images=data.test_images[:test_limit].to(device),
        test_labels=data.test_labels[:test_limit].to(device),
    )


def _resume(run: Run) -> None:
    """Goes on from the checkpoint in the run's folder, if there is one.

    Raises:
        ValueError: the checkpoint is of another run, or of one of more epochs.
    """
    assert run.folder is not None
    path = run.folder / CHECKPOINT
    if not path.exists():
        return
    # compared before weights are loaded, which might not even fit
    state = load_state(path)
    check_same_run(path, state, run.description)
    run.stages = stages_of(path, state, run.epochs)
    load_checkpoint(path, run.model, run.optimizer, run.average)
    run.history = state["history"]
    run.scaler.load_state_dict(state.get("scaler", {}))


def _start_files(run: Run, tensorboard: bool) -> None:
    """Makes the folder, in which metrics.jsonl tells the epochs that the checkpoint holds."""
    folder = run.written_folder
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_metrics(folder, run.history)
    if tensorboard:
        run.writer = _tensorboard(folder)


def _tensorboard(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard=True needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(folder)


# ---- an epoch


def _run_epoch(run: Run, epoch: int) -> Metrics:
    """Trains for one epoch, evaluates, and returns the metrics."""
    started = time.perf_counter()
    started_cpu = time.process_time()
    train_loss, train_accuracy = _train_epoch(run, epoch)
    train_seconds = time.perf_counter() - started
    test_loss, test_accuracy = evaluate(
        run.evaluated_model,
        run.data.test_images,
        run.data.test_labels,
        mean=run.data.mean,
        std=run.data.std,
    )
    return {
        "epoch": epoch + 1,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "lr": run.optimizer.param_groups[0]["lr"],
        "train_s": round(train_seconds, 3),
        "images_per_s": round(len(run.data.train_images) / train_seconds, 1),
        "cpu_s": round(time.process_time() - started_cpu, 3),
        "wall_s": round(time.perf_counter() - started, 3),
    }


def _train_epoch(run: Run, epoch: int) -> tuple[float, float]:
    """Takes the steps of one epoch; returns mean loss and accuracy over the training images."""
    epoch_seed = 1_000_003 * (run.seed + 1) + epoch
    # dropout differs between processes; order and augmentation must not
    torch.manual_seed(epoch_seed * run.world + run.rank)
    generator = torch.Generator(run.device).manual_seed(epoch_seed)
    images = len(run.data.train_images)
    order = torch.randperm(images, generator=generator, device=run.device)
    sums = torch.zeros(2, dtype=torch.float64, device=run.device)
    seen = 0
    bar = tqdm(
        order.split(run.config.batch_size),
        desc=f"{run.config.architecture.mlp} epoch {epoch + 1}/{run.epochs}",
        disable=not run.show_progress,
        leave=False,
    )
    for index, batch in enumerate(bar):
        sums += _train_step(run, epoch * run.steps_per_epoch + index, batch, generator)
        seen += len(batch[run.rank :: run.world])
        if index % 10 == 9 and run.show_progress:
            loss, accuracy = (sums / seen).tolist()
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")
    if run.world > 1:
        distributed.all_reduce(sums)
    loss, accuracy = (sums / images).tolist()
    return loss, accuracy


def _train_step(run: Run, step: int, batch: Tensor, generator: torch.Generator) -> Tensor:
    """One step of the optimizer.

    Args:
        run: the run.
        step: its number in the whole run, from 0.
        batch: indices of the images, of all processes together (B,).
        generator: for the augmentation.

    Returns:
        The sum of the losses and the number of correct answers over this process's images (2,).
    """
    config = run.config
    set_learning_rates(run.optimizer, step, run.epochs * run.steps_per_epoch, config)
    x, targets, labels = _own_part(run, step, batch, generator)
    with autocast(run.device, run.autocast_dtype):
        logits = run.network(x)  # (B / world, classes)
    # summed, because a process may have no image of a last, small batch
    loss_sum = F.cross_entropy(
        logits.float(), targets, label_smoothing=config.label_smoothing, reduction="sum"
    )
    run.optimizer.zero_grad(set_to_none=True)
    # gradients are averaged over the processes: with this weight, to the mean over the batch
    run.scaler.scale(loss_sum * run.world / len(batch)).backward()
    _update(run, step, x, loss_sum)
    if run.average is not None:
        run.average.update(run.model)
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss_sum.detach(), correct])


def _update(run: Run, step: int, x: Tensor, loss_sum: Tensor) -> None:
    """The optimizer's part of a step: checks the gradients, clips them and moves the weights.

    Raises:
        TrainingDiverged: the loss or a gradient is not finite.
    """
    # `unscale_` is for all parameters at once, also where several optimizers share them
    run.scaler.unscale_(run.optimizer)  # type: ignore[arg-type]
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # before the clipping, by which one NaN would spread to all gradients; a scaled gradient may
    # overflow, and the scaler then skips the step and takes a smaller scale
    suspect = loss_sum if run.scaler.is_enabled() else loss_sum + norm
    if not suspect.isfinite():
        raise TrainingDiverged(_divergence(run, step, x, loss_sum, norm))
    if run.config.clip_grad > 0:
        nn.utils.clip_grads_with_norm_(run.model.parameters(), run.config.clip_grad, norm)
    run.scaler.step(run.optimizer)  # type: ignore[arg-type]
    run.scaler.update()


def _own_part(
    run: Run, step: int, batch: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """This process's part of a batch: prepared images and targets, and the labels.

    Every process prepares the whole batch, for mixing pairs its images.
    """
    labels = run.data.train_labels[batch]
    images = run.data.train_images[batch]
    x, targets = prepare(
        images,
        labels,
        run.config,
        generator,
        seed=run.step_seed(step),
        mean=run.data.mean,
        std=run.data.std,
    )
    part = slice(run.rank, None, run.world)
    return x[part], targets[part], labels[part]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Mixed precision in `dtype`, or none."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


# ---- what is not finite


def _divergence(run: Run, step: int, x: Tensor, loss: Tensor, norm: Tensor) -> str:
    """The message of `TrainingDiverged`."""
    epoch = step // run.steps_per_epoch + 1
    return (
        f"step {step} (epoch {epoch}): not finite in {first_nonfinite(run.model, x)}; "
        f"loss {loss.item()}, gradient norm {norm.item()}. "
        f"Try a smaller learning rate than {run.config.lr}."
    )


def first_nonfinite(model: nn.Module, x: Tensor) -> str:
    """Where a model stops being finite.

    Returns:
        The name of the first layer whose output is not finite for the input x, or else of the first
        parameter whose gradient is not, or else "the loss".
    """
    layer = _first_nonfinite_layer(model, x)
    if layer is not None:
        return layer
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss"


def _first_nonfinite_layer(model: nn.Module, x: Tensor) -> str | None:
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def check_output(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if not output.isfinite().all():
            found.append(names[module])

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(check_output) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


# ---- evaluation


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 500,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction; several processes share the work.

    Args:
        model: gives logits (B, classes) for normalised images.
        images: uint8 (N, C, H, W), on the model's device.
        labels: int64 (N,), likewise.
        batch_size: images in a forward pass.
        mean, std: what the images are normalised with; default: those of CIFAR-10.
    """
    rank, world = processes()
    was_training = model.training
    model.eval()
    batches = list(zip(images.split(batch_size), labels.split(batch_size)))
    loss_sum = 0.0
    correct = 0.0
    for x, y in batches[rank::world]:
        logits = model(normalize(x, mean, std)).float()
        loss_sum += F.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    model.train(was_training)
    sums = torch.tensor([loss_sum, correct], dtype=torch.float64)
    if world > 1:
        sums = sums.to(images.device)
        distributed.all_reduce(sums)
    loss, accuracy = (sums / len(labels)).tolist()
    return loss, accuracy


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes that train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


# ---- what is kept


def _store_epoch(run: Run) -> None:
    """Writes the checkpoint and the metrics of the last epoch."""
    folder = run.written_folder
    if folder is None:
        return
    state = {
        "run": run.description,
        "history": run.history,
        "scaler": run.scaler.state_dict(),
    }
    save_checkpoint(folder / CHECKPOINT, run.model, run.optimizer, state, run.average)
    _write_metrics(folder, run.history)
    if run.writer is not None:
        metrics = run.history[-1]
        for name, value in metrics.items():
            run.writer.add_scalar(name, value, metrics["epoch"])
        run.writer.flush()


def _write_metrics(folder: Path, history: list[Metrics]) -> None:
    """metrics.jsonl: one line for each epoch."""
    lines = [json.dumps(metrics) + "\n" for metrics in history]
    write_text(folder / "metrics.jsonl", "".join(lines))


def _finish(run: Run) -> dict[str, Any]:
    """Returns the run's record and writes it to result.json."""
    record = final_record(
        run.description,
        run.history,
        run.evaluated_model,
        device=run.device,
        processes=run.world,
        data_sha256=run.data.sha256,
    )
    folder = run.written_folder
    if folder is not None:
        write_json(folder / "result.json", record)
    if run.writer is not None:
        run.writer.close()
    return record
