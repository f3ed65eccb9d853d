"""Trains a KAT, or its twin with MLPs, on CIFAR-10: one readable loop and its command line.

    python -m katlib.train --preset cifar-nano --mlp grkan --epochs 3 --seed 0 --out runs/kat

Everything random in an epoch - the order of the images, their augmentation, dropout - follows from the seed and the epoch's number, so
a run that was stopped and resumed gives the same numbers as one that was not.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.checkpoint import load_checkpoint, save_checkpoint
from katlib.data import CIFAR10, augment, load_cifar10, normalize
from katlib.rational import GroupRational
from katlib.results import device_name, git_commit, learned_activations, write_json
from katlib.vit import VisionTransformer


@dataclass(frozen=True)
class Config:
    """A model and its recipe. `groups` is without effect for an MLP; `lr` is the peak of warm-up and cosine decay."""

    patch_size: int = 4
    embed_dim: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    groups: int = 8
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1                 # share of all steps
    label_smoothing: float = 0.1
    clip_grad: float = 1.0


PRESETS = {"cifar-nano": Config()}


class TrainingDiverged(FloatingPointError):
    """A loss or gradient was not finite; the message names the step and the first layer where it happened."""


def build_model(config: Config, mlp: str) -> VisionTransformer:
    """The model of a preset; `mlp` is "grkan" for a KAT and "mlp" for its twin."""
    return VisionTransformer(img_size=32, patch_size=config.patch_size, num_classes=10, embed_dim=config.embed_dim, depth=config.depth,
                             num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, mlp=mlp, groups=config.groups)


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases, norms, embeddings and the coefficients of rational functions: only matrices decay."""
    spared = {id(p) for m in model.modules() if isinstance(m, GroupRational) for p in m.parameters()}
    matrices = [p for p in model.parameters() if p.ndim in (2, 4) and id(p) not in spared]
    others = [p for p in model.parameters() if not (p.ndim in (2, 4) and id(p) not in spared)]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
                             lr=config.lr, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, steps: int, config: Config) -> float:
    """Linear warm-up to `config.lr`, then a cosine down to 0 at step `steps`."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction, over uint8 images (N, 3, 32, 32) on the model's device."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size)):
        logits = model(normalize(x))
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    model.train()
    return loss / len(labels), correct / len(labels)


def first_nonfinite(model: nn.Module, x: Tensor) -> str:
    """The name of the first layer whose output is not finite, or of the first parameter whose gradient is not."""
    found: list[str] = []
    hooks = [module.register_forward_hook(lambda m, i, out, name=name: found.append(name) if not out.isfinite().all() else None)
             for name, module in model.named_modules() if not list(module.children())]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    gradients = [f"the gradient of {name}" for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return (found + gradients + ["the loss"])[0]


def train(preset: str | Config = "cifar-nano", mlp: str = "grkan", epochs: int = 3, seed: int = 0, limit: int | None = None,
          test_limit: int | None = None, out: str | Path | None = None, resume: bool = False, data: CIFAR10 | None = None,
          device: str | torch.device | None = None, progress: bool = True, on_epoch: Callable[[nn.Module, dict], None] | None = None) -> dict:
    """Trains one model and returns its record, the dictionary that `results/*.json` hold.

    Args:
        preset: a name in `PRESETS`, or a `Config`.
        mlp: "grkan" for a KAT, "mlp" for its twin.
        epochs: passes over the training images; the learning-rate schedule ends with the last.
        seed: of weights, order and augmentation.
        limit, test_limit: use the first so many training and test images; None for all.
        out: folder for `metrics.jsonl` (a line an epoch), `checkpoint.safetensors` and `result.json`; None keeps nothing.
        resume: go on from the checkpoint in `out`, if there is one.
        data: default: `load_cifar10()`.
        device: default: the GPU if there is one, else the CPU.
        progress: show a bar for each epoch.
        on_epoch: called after each epoch with the model and the epoch's metrics.

    Raises:
        ValueError: an unknown preset, or a checkpoint of another run in `out`.
        TrainingDiverged: a loss or gradient that is not finite.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not known; allowed are {', '.join(map(repr, PRESETS))}")
    if epochs < 1 or (limit is not None and limit < 1) or (test_limit is not None and test_limit < 1):
        raise ValueError(f"epochs={epochs}, limit={limit}, test_limit={test_limit}; all must be 1 or more")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run to resume")
    config = PRESETS[preset] if isinstance(preset, str) else preset
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = data or load_cifar10(progress=progress)
    images, labels = (t[:limit].to(device) for t in (data.train_images, data.train_labels))
    test_images, test_labels = (t[:test_limit].to(device) for t in (data.test_images, data.test_labels))

    torch.manual_seed(seed)
    model = build_model(config, mlp).to(device)
    optimizer = build_optimizer(model, config)
    steps = math.ceil(len(images) / config.batch_size)                          # in an epoch
    run = {"preset": preset if isinstance(preset, str) else "custom", "mlp": mlp, "seed": seed,
           "config": asdict(config) | {"epochs": epochs, "train_images": len(images), "test_images": len(test_images)}}
    history: list[dict] = []
    checkpoint = Path(out) / "checkpoint.safetensors" if out else None
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer)
        if state["run"] != run:
            raise ValueError(f"{checkpoint} belongs to another run: it is of {state['run']}, asked was {run}")
        history = state["history"]
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))

    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        torch.manual_seed(1_000_003 * (seed + 1) + epoch)                       # dropout
        generator = torch.Generator(device).manual_seed(1_000_003 * (seed + 1) + epoch)
        order = torch.randperm(len(images), generator=generator, device=device)
        loss_sum, correct = 0.0, 0
        bar = tqdm(order.split(config.batch_size), desc=f"{mlp} epoch {epoch + 1}/{epochs}", disable=not progress, leave=False)
        for i, batch in enumerate(bar):
            step = epoch * steps + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, epochs * steps, config)
            x, y = augment(normalize(images[batch]), generator), labels[batch]  # (B, 3, 32, 32), (B,)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(x)                                               # (B, 10)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if not (loss + norm).isfinite():
                raise TrainingDiverged(f"step {step} (epoch {epoch + 1}): not finite in {first_nonfinite(model, x)}; loss {loss.item()}, "
                                       f"gradient norm {norm.item()}. Try a smaller learning rate than {config.lr}.")
            nn.utils.clip_grads_with_norm_(model.parameters(), config.clip_grad, norm)     # after the check: a NaN norm would spread to all
            optimizer.step()
            loss_sum += loss.item() * len(y)
            correct += (logits.argmax(1) == y).sum().item()
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{correct / min(len(order), (i + 1) * config.batch_size):.1%}")
        train_seconds = time.perf_counter() - started
        test_loss, test_accuracy = evaluate(model, test_images, test_labels)
        history.append({"epoch": epoch + 1, "train_loss": loss_sum / len(order), "train_accuracy": correct / len(order),
                        "test_loss": test_loss, "test_accuracy": test_accuracy, "lr": optimizer.param_groups[0]["lr"],
                        "train_s": round(train_seconds, 3), "images_per_s": round(len(order) / train_seconds, 1),
                        "wall_s": round(time.perf_counter() - started, 3)})
        if out:
            save_checkpoint(checkpoint, model, optimizer, {"run": run, "history": history})
            with (Path(out) / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(history[-1]) + "\n")
        if on_epoch:
            on_epoch(model, history[-1])

    record = run | {"epochs": history, "test_accuracy": history[-1]["test_accuracy"], "wall_s": round(sum(e["wall_s"] for e in history), 1),
                    "parameters": sum(p.numel() for p in model.parameters()), "device_name": device_name(device), "torch": torch.__version__,
                    "commit": git_commit(), "date": date.today().isoformat(), "data_sha256": data.sha256, "activations": learned_activations(model)}
    if out:
        write_json(Path(out) / "result.json", record)
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m katlib.train", description="Train a KAT, or its MLP twin, on CIFAR-10.")
    parser.add_argument("--preset", choices=PRESETS, default="cifar-nano")
    parser.add_argument("--mlp", choices=("grkan", "mlp"), default="grkan", help="grkan: a KAT; mlp: its twin (default: grkan)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on the first N images only")
    parser.add_argument("--test-limit", type=int, help="test on the first N images only")
    parser.add_argument("--lr", type=float, help="peak learning rate, instead of the preset's")
    parser.add_argument("--batch-size", type=int, help="instead of the preset's")
    parser.add_argument("--out", help="folder of the run (default: runs/PRESET-MLP-seedSEED)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder, if there is one")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    options = parser.parse_args(arguments)
    overrides = {key: value for key, value in (("lr", options.lr), ("batch_size", options.batch_size)) if value is not None}
    preset = replace(PRESETS[options.preset], **overrides) if overrides else options.preset
    out = options.out or f"runs/{options.preset}-{options.mlp}-seed{options.seed}"

    def report(model: nn.Module, e: dict) -> None:
        print(f"epoch {e['epoch']}/{options.epochs}: train loss {e['train_loss']:.4f}, test loss {e['test_loss']:.4f}, "
              f"test accuracy {e['test_accuracy']:.2%}, {e['images_per_s']:.0f} images/s", flush=True)

    try:
        record = train(preset, options.mlp, options.epochs, options.seed, options.limit, options.test_limit, out, options.resume,
                       device=options.device, on_epoch=report)
    except (TrainingDiverged, ValueError, RuntimeError) as error:
        sys.exit(f"katlib.train: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nkatlib.train: stopped; `--resume` goes on after the last whole epoch in {out}")
    print(f"{record['parameters']:,} parameters, test accuracy {record['test_accuracy']:.2%} in {record['wall_s']:.0f} s; record in {out}/result.json")


if __name__ == "__main__":
    main()
