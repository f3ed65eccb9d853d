"""Data to train on in a test, in a second."""

import torch
from torch import Tensor

from katlib.train.data import CIFAR10


def draw_tiny() -> CIFAR10:
    """64 training and 32 test images that a model can learn.

    Each class has a colour of its own, under noise.
    """
    colours = torch.randint(0, 256, (10, 3, 1, 1), generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 10
        noise = torch.randint(-20, 21, (count, 3, 32, 32), generator=generator)
        return (colours[labels] + noise).clamp(0, 255).to(torch.uint8), labels

    train_images, train_labels = draw(64)
    test_images, test_labels = draw(32)
    return CIFAR10(train_images, train_labels, test_images, test_labels, sha256="made for a test")
