"""Brings CIFAR-10 to a machine without a network, in three parts of about 35 MB.

    python benchmarks/cifar_parts.py write build/cifar
    python benchmarks/cifar_parts.py read build/cifar

`write` makes the parts from the data in the cache, which it downloads if need be. They may be
carried one at a time. `read` puts them together in the cache of the other machine, where
`load_cifar10` then finds them. Every pixel and label is checked by the data's SHA-256.

A part holds two sheets of 100 x 100 images each, as lossless WebP, and their labels. That takes
three fifths of the bytes of the data.
"""

import argparse
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from katlib.files import cache_folder, write_whole
from katlib.train.data import CACHE, load_cifar10

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cifar"
NAMES = tuple(f"cifar10-part{number}.safetensors" for number in (1, 2, 3))
# images in a row and in a column of a sheet
SIDE = 100
SHEET = SIDE * SIDE
PIXELS = 32
TRAINING = 50_000


def cache() -> Path:
    """The file in which `load_cifar10` looks."""
    return cache_folder(os.environ.get("KATLIB_DATA")) / CACHE


def is_there(folder: Path = FOLDER) -> bool:
    """Whether CIFAR-10 is in the cache, or all of its parts are in the folder."""
    return cache().exists() or all((folder / name).exists() for name in NAMES)


# ---- sheets


def encode(images: Tensor, side: int) -> Tensor:
    """Images (side^2, 3, 32, 32) as one WebP, uint8 (bytes,)."""
    rows = images.view(side, side, 3, PIXELS, PIXELS).permute(0, 3, 1, 4, 2)
    sheet = rows.reshape(side * PIXELS, side * PIXELS, 3)
    file = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(file, "WEBP", lossless=True, quality=75, method=4)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def decode(webp: Tensor, side: int) -> Tensor:
    """The images (side^2, 3, 32, 32) of a sheet."""
    sheet = torch.from_numpy(np.array(Image.open(io.BytesIO(webp.numpy().tobytes()))))
    rows = sheet.view(side, PIXELS, side, PIXELS, 3).permute(0, 2, 4, 1, 3)
    return rows.reshape(side * side, 3, PIXELS, PIXELS)


# ---- parts


def write(folder: Path) -> None:
    """Writes the three parts, and says how large they are."""
    data = load_cifar10()
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels]).to(torch.uint8)
    parts = zip(NAMES, images.split(2 * SHEET), labels.split(2 * SHEET))
    for name, part_images, part_labels in parts:
        tensors = {"labels": part_labels.clone()}
        for number, sheet in enumerate(part_images.split(SHEET)):
            tensors[f"sheet{number}"] = encode(sheet, SIDE)
        with write_whole(folder / name) as temporary:
            save_file(tensors, temporary, metadata={"sha256": data.sha256})
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.1f} MB", flush=True)


def read(folder: Path) -> None:
    """Puts the parts together in the cache, unless the data are there already."""
    if not cache().exists():
        absent = [name for name in NAMES if not (folder / name).exists()]
        if absent:
            sys.exit(f"{folder} lacks {', '.join(absent)}")
        join(folder)
    # this checks every byte
    print(load_cifar10(progress=False))


def join(folder: Path) -> None:
    """Writes the cache from the parts."""
    images, labels, sums = [], [], set()
    for name in NAMES:
        part = load_file(folder / name)
        images += [decode(part["sheet0"], SIDE), decode(part["sheet1"], SIDE)]
        labels.append(part["labels"].long())
        with safe_open(folder / name, "pt") as file:
            sums.add((file.metadata() or {}).get("sha256"))
    if len(sums) != 1 or None in sums:
        sys.exit("the parts are not of the same data")
    all_images, all_labels = torch.cat(images), torch.cat(labels)
    tensors = {
        "train_images": all_images[:TRAINING].contiguous(),
        "train_labels": all_labels[:TRAINING].contiguous(),
        "test_images": all_images[TRAINING:].contiguous(),
        "test_labels": all_labels[TRAINING:].contiguous(),
    }
    cache().parent.mkdir(parents=True, exist_ok=True)
    with write_whole(cache()) as temporary:
        save_file(tensors, temporary, metadata={"sha256": sums.pop()})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("write", "read"))
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    options = parser.parse_args(arguments)
    {"write": write, "read": read}[options.action](options.folder)


if __name__ == "__main__":
    main()
