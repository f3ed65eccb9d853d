"""A small ConvNet on CIFAR-10 with ReLU, with GELU, and with a learned activation.

    python examples/convnet.py --steps 300

The learned activation starts as GELU. It is `GroupRational(channels, dim=1)`: in (N, C, H, W) the
channels are dimension 1, and 8 groups of them have a denominator each. All three networks see the
same batches and start from the same convolutions.
"""

import argparse

import loop
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import katlib
from katlib.train import evaluate
from katlib.train.data import CIFAR10, augment, normalize
from katlib.train.recipe import Config

ACTIVATIONS = ("relu", "gelu", "rational")
CLASSES = 10
CONFIG = Config(lr=3e-3)


def make_activation(name: str, channels: int) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    if name == "gelu":
        return nn.GELU()
    return katlib.GroupRational(channels, groups=8, init="gelu", dim=1)


class ConvNet(nn.Module):
    """Three stages, each of two convolutions with norm and activation, then the mean over pixels.

    Every stage but the first halves the resolution and doubles the channels.
    """

    def __init__(self, activation: str, width: int = 32, classes: int = CLASSES):
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in range(3):
            out_channels = width * 2**stage
            for stride in (1 if stage == 0 else 2, 1):
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    make_activation(activation, out_channels),
                ]
                in_channels = out_channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)  # (B, 3, 32, 32) -> (B, 4 width, 8, 8)
        return self.head(features.mean((2, 3)))  # (B, classes)


def on_device(data: CIFAR10, device: str) -> CIFAR10:
    return CIFAR10(
        data.train_images.to(device),
        data.train_labels.to(device),
        data.test_images.to(device),
        data.test_labels.to(device),
        data.sha256,
    )


def run(activation: str, seed: int, data: CIFAR10, opts: argparse.Namespace) -> dict:
    """Trains and tests one network; returns its row of the record."""
    torch.manual_seed(seed)
    model = ConvNet(activation, width=16).to(opts.device)

    def loss_of_batch(generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(data.train_images), (opts.batch,), generator=generator)
        drawn = drawn.to(opts.device)
        images = augment(normalize(data.train_images[drawn]), generator)
        return F.cross_entropy(model(images), data.train_labels[drawn])

    row = {"activation": activation, "seed": seed}
    row |= loop.train(model, loss_of_batch, opts.steps, seed, CONFIG)
    # a short run is not worth testing on all 10,000 images
    test_images = min(len(data.test_images), 50 * opts.steps)
    row["loss"], row["accuracy"] = evaluate(
        model, data.test_images[:test_images], data.test_labels[:test_images]
    )
    row["test_images"] = test_images
    return row


def main() -> None:
    opts = loop.options(__doc__.splitlines()[0], steps=300, batch=64)
    data = on_device(katlib.load_cifar10(), opts.device)
    rows = []
    for seed in range(opts.seeds):
        for activation in ACTIVATIONS:
            row = run(activation, seed, data, opts)
            rows.append(row)
            print(
                f"{activation:9} seed {seed}: {row['parameters']:,} parameters, "
                f"test accuracy {row['accuracy']:.2%}, test loss {row['loss']:.4f}, "
                f"{row['train_s']:.0f} s",
                flush=True,
            )
    what = (
        "a ConvNet on CIFAR-10, its activation ReLU, GELU, or a GroupRational that starts as GELU"
    )
    loop.store(opts.out, what, opts, rows, data_sha256=data.sha256)


if __name__ == "__main__":
    main()
