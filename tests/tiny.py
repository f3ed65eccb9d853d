"""Data to train on in a test, in a second."""

import torch

from katlib.train.data import CIFAR10


def draw_tiny():
    """64 training and 32 test images that a model can learn: each class has a colour of its own, under noise."""
    generator = torch.Generator().manual_seed(1)

    def draw(n):
        labels = torch.arange(n) % 10
        colours = torch.randint(0, 256, (10, 3, 1, 1), generator=torch.Generator().manual_seed(2))
        images = (
            (colours[labels] + torch.randint(-20, 21, (n, 3, 32, 32), generator=generator))
            .clamp(0, 255)
            .to(torch.uint8)
        )
        return images, labels

    (train_images, train_labels), (test_images, test_labels) = draw(64), draw(32)
    return CIFAR10(train_images, train_labels, test_images, test_labels, sha256="made for a test")
