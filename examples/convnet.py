"""A small ConvNet on CIFAR-10 with ReLU, with GELU, and with a learned function that starts as GELU: python examples/convnet.py --steps 300

The learned one is `GroupRational(channels, dim=1)`: in (N, C, H, W) the channels are dimension 1, and 8 groups of them have a denominator each.
All three see the same batches and start from the same convolutions.
"""

import loop
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import katlib
from katlib.train import evaluate
from katlib.train.data import augment, normalize
from katlib.train.recipe import Config

ACTIVATIONS = {
    "relu": lambda channels: nn.ReLU(),
    "gelu": lambda channels: nn.GELU(),
    "rational": lambda channels: katlib.GroupRational(channels, groups=8, init="gelu", dim=1),
}


class ConvNet(nn.Module):
    """Three stages of convolution, norm, activation, twice, at half the resolution each; then the mean over the image."""

    def __init__(self, activation: str, width: int = 32, classes: int = 10):
        super().__init__()
        layers, channels = [], 3
        for stage in range(3):
            for stride in (2 if stage else 1, 1):
                out = width * 2**stage
                layers += [
                    nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    ACTIVATIONS[activation](out),
                ]
                channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            self.features(x).mean((2, 3))
        )  # (B, 3, 32, 32) -> (B, 4 width, 8, 8) -> (B, classes)


def main() -> None:
    opts = loop.options(__doc__.splitlines()[0], steps=300, batch=64)
    data = katlib.load_cifar10()
    images, labels, test_images, test_labels = (
        t.to(opts.device)
        for t in (data.train_images, data.train_labels, data.test_images, data.test_labels)
    )
    rows = []
    for seed in range(opts.seeds):
        for activation in ACTIVATIONS:
            torch.manual_seed(seed)
            model = ConvNet(activation, width=16).to(opts.device)

            def loss_of(generator: torch.Generator) -> Tensor:
                batch = torch.randint(len(images), (opts.batch,), generator=generator).to(
                    opts.device
                )
                return F.cross_entropy(
                    model(augment(normalize(images[batch]), generator)), labels[batch]
                )

            row = {"activation": activation, "seed": seed} | loop.train(
                model, loss_of, opts.steps, seed, Config(lr=3e-3)
            )
            tested = min(len(test_labels), 50 * opts.steps)  # a toy run is not worth all 10,000
            row["loss"], row["accuracy"] = evaluate(
                model, test_images[:tested], test_labels[:tested]
            )
            rows.append(row | {"test_images": tested})
            print(
                f"{activation:9} seed {seed}: {row['parameters']:,} parameters, test accuracy {row['accuracy']:.2%}, test loss {row['loss']:.4f}, "
                f"{row['train_s']:.0f} s",
                flush=True,
            )
    loop.store(
        opts.out,
        "a ConvNet on CIFAR-10, its activation ReLU, GELU, or a GroupRational that starts as GELU",
        opts,
        rows,
        data_sha256=data.sha256,
    )


if __name__ == "__main__":
    main()
