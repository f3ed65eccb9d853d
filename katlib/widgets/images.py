"""The test images that `ModelExplorer` shows: the first two of each class in CIFAR-10's test set.

They come with katlib, so that the figure needs no download. `python -m katlib.widgets.images`
writes their file anew.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from katlib.files import write_whole

FILE = Path(__file__).with_name("images.safetensors")
PER_CLASS = 2


def first_of_each_class(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first images of each class, class by class, and their labels."""
    classes = labels.unique().tolist()
    order = torch.cat([(labels == label).nonzero()[:PER_CLASS, 0] for label in classes])
    return images[order], labels[order]


def load_images() -> tuple[Tensor, Tensor]:
    """The stored images, (20, 3, 32, 32) uint8, and their labels, (20,) int64."""
    tensors = load_file(FILE)
    return tensors["images"], tensors["labels"]


def write_images() -> None:
    """Stores the images of the real data set."""
    from katlib.train.data import load_cifar10

    data = load_cifar10()
    images, labels = first_of_each_class(data.test_images, data.test_labels)
    with write_whole(FILE) as temporary:
        save_file({"images": images.contiguous(), "labels": labels}, temporary)


if __name__ == "__main__":
    write_images()
