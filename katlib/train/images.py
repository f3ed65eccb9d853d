"""Images of one's own to train on: tensors, or a folder with a subfolder for each class.

All images are held in memory as uint8, so there is no data loader and no worker process, as with
CIFAR-10, which `katlib.train.data` has.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import InterpolationMode, v2
from tqdm.auto import tqdm

from katlib.architecture import check_int, check_number
from katlib.files import user_path

SPLITS = ("train", "test")

# the folder beside `train`, by either of the names that are usual
TEST_FOLDERS = ("test", "val")

# bytes of all images together; they must fit in memory twice over, on the GPU too
MAX_BYTES = 8 * 10**9

READERS = 8


@dataclass(repr=False)
class ImageData:
    """Images of one size with their labels, for `katlib.train.train(data=...)`.

    Args:
        train_images: uint8 (N, C, H, H), from 0 to 255, with any number of channels C.
        train_labels: whole numbers (N,), indices into `classes`.
        test_images, test_labels: likewise.
        sha256: of all pixels and labels, in hexadecimal; if empty, it is computed.
        classes: names; if empty, "0", "1" and so on up to the largest training label.
        mean, std: of the training pixels in each channel, scaled to [0, 1]; if empty, they are
            computed.

    Raises:
        ValueError: tensors of other shapes or types, a label out of range, names that are given
            twice, or training images that are all of one colour.

    Example:
        >>> from katlib.train import ImageData
        >>> images = torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8)
        >>> labels = torch.arange(60) % 3
        >>> ImageData(images[:45], labels[:45], images[45:], labels[45:], classes=["a", "b", "c"])
        ImageData(45 training and 15 test images of 1 x 28 x 28, 3 classes, 47,040 bytes)
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str = ""
    classes: Sequence[str] = ()
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def __post_init__(self) -> None:
        self.train_images = _checked_images("train_images", self.train_images)
        self.test_images = _checked_images("test_images", self.test_images)
        self.train_labels = _checked_labels(
            "train_labels", self.train_labels, len(self.train_images)
        )
        self.test_labels = _checked_labels("test_labels", self.test_labels, len(self.test_images))
        shapes = [tuple(images.shape[1:]) for images in (self.train_images, self.test_images)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the training images have the shape {shapes[0]}, the test images {shapes[1]}"
            )
        self.classes = self._checked_names()
        _check_range("train_labels", self.train_labels, len(self.classes))
        _check_range("test_labels", self.test_labels, len(self.classes))
        self.mean, self.std = self._checked_statistics()
        self.sha256 = self.sha256 or _digest(self)

    def __repr__(self) -> str:
        channels, height, width = self.train_images.shape[1:]
        size = self.train_images.numel() + self.test_images.numel()
        return (
            f"{type(self).__name__}({len(self.train_images):,} training and "
            f"{len(self.test_images):,} test images of {channels} x {height} x {width}, "
            f"{len(self.classes)} classes, {size:,} bytes)"
        )

    @property
    def sizes(self) -> dict[str, int]:
        """What the images and their classes ask of a model."""
        _, channels, height, _ = self.train_images.shape
        return {"img_size": height, "in_chans": channels, "num_classes": len(self.classes)}

    @property
    def description(self) -> dict[str, Any]:
        """What a record and a checkpoint say of the images, so that a model can be used later."""
        images = {"mean": [*self.mean], "std": [*self.std], "classes": [*self.classes]}
        return {"images": images, "data_sha256": self.sha256}

    def check_classes(self) -> None:
        """Raises a ValueError if there is a class without a training image."""
        counts = torch.bincount(self.train_labels, minlength=len(self.classes))
        missing = [name for name, count in zip(self.classes, counts.tolist()) if not count]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.classes)} classes have no training image "
                f"({_some(missing)}); labels count from 0, and `classes` names only what is there"
            )

    def _checked_names(self) -> tuple[str, ...]:
        if len(self.classes) == 0:
            largest = int(self.train_labels.max())
            if largest >= len(self.train_labels):
                raise ValueError(
                    f"the largest of {len(self.train_labels)} training labels is {largest}, so "
                    "that there are classes without an image; labels count from 0 without gaps"
                )
            names = tuple(str(label) for label in range(largest + 1))
        elif isinstance(self.classes, str):
            raise ValueError(f"classes={self.classes!r:.100}; needed is a list of names")
        else:
            names = tuple(self.classes)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"classes={names!r:.100}; needed is a list of names")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"classes={names!r:.100} has a name twice: {_some(twice)}")
        if len(names) < 2:
            raise ValueError(
                f"there are {len(names)} classes; two or more are needed to tell apart"
            )
        return names

    def _checked_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, as given or else computed."""
        if len(self.mean) == len(self.std) == 0:
            return _statistics(self.train_images)
        channels = self.train_images.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(
                    f"{name} has {len(values)} numbers; the images {channels} channels"
                )
            for value in values:
                check_number(name, value, 0)
        if min(self.std) == 0:
            raise ValueError(f"std={tuple(self.std)}; a standard deviation is more than 0")
        return tuple(self.mean), tuple(self.std)


# ---- what tensors must be like


def _checked_images(name: str, images: object) -> Tensor:
    """The images, if they are uint8 (N, C, H, H).

    Raises:
        ValueError: they are not; where it can be guessed what they are, it says what to do.
    """
    images = _tensor(name, images)
    shape = tuple(images.shape)
    if images.is_floating_point():
        raise ValueError(
            f"{name} are {images.dtype}; needed is torch.uint8. Pixels from 0 to 1 become so by "
            "(255 * images).round().to(torch.uint8)"
        )
    if images.dtype != torch.uint8:
        raise ValueError(f"{name} are {images.dtype}; needed is torch.uint8, from 0 to 255")
    if images.ndim == 3:
        raise ValueError(
            f"{name} have the shape {shape}; needed is (N, C, H, W): images.unsqueeze(1) adds the "
            "one channel"
        )
    if images.ndim != 4:
        raise ValueError(f"{name} have the shape {shape}; needed is (N, C, H, W)")
    if shape[1] == shape[2] and shape[3] <= 4 < shape[1]:
        raise ValueError(
            f"{name} have the shape {shape}, with the channels last; needed is (N, C, H, W): "
            "images.permute(0, 3, 1, 2)"
        )
    if shape[2] != shape[3]:
        raise ValueError(f"{name} are {shape[2]} x {shape[3]} pixels; needed are squares")
    if images.numel() == 0:
        raise ValueError(f"{name} have the shape {shape}; there is no image")
    return images


def _checked_labels(name: str, labels: object, images: int) -> Tensor:
    """The labels as int64 (N,).

    Raises:
        ValueError: another shape, or no whole numbers.
    """
    labels = _tensor(name, labels)
    shape = tuple(labels.shape)
    if labels.ndim == 2 and shape[1] > 1:
        raise ValueError(
            f"{name} have the shape {shape}; needed is one whole number for each image: "
            "labels.argmax(1), if they are probabilities"
        )
    if shape != (images,):
        raise ValueError(
            f"{name} have the shape {shape}; needed is ({images},), one for each image"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} are {labels.dtype}; needed are whole numbers: labels.long()")
    return labels.long()


def _tensor(name: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made a tensor: {error}") from error


def _check_range(name: str, labels: Tensor, classes: int) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(
            f"{name}[{index}] is {int(labels[index])}; for {classes} classes allowed are 0 to "
            f"{classes - 1}"
        )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1].

    A channel in which all pixels are the same, as the blue one of some microscopes, has the
    standard deviation 1, so that it becomes 0.

    Raises:
        ValueError: all channels are like that.
    """
    means, deviations = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        # exact, and without a copy of all images as floating-point numbers
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).cpu().double()
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(round(mean, 6))
        deviations.append(round(math.sqrt(float(share @ (values - mean) ** 2)), 6))
    if not any(deviations):
        raise ValueError(
            "all training images are of the same one colour; there is nothing to learn"
        )
    return tuple(means), tuple(deviation or 1.0 for deviation in deviations)


def _digest(data: ImageData) -> str:
    """SHA-256 of shapes, pixels and labels (eight bytes each)."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for tensor in (getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# ---- a folder


def load_image_folder(
    path: str | os.PathLike,
    img_size: int,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = True,
    max_bytes: int = MAX_BYTES,
) -> ImageData:
    """Images from `path/train/CLASS/*` and `path/test/CLASS/*`, or from `path/CLASS/*`.

    They are found as by `torchvision.datasets.ImageFolder`: the subfolders' names are the classes,
    and what lies deeper counts too. Names that begin with a dot are skipped. Each image is
    converted to RGB, resized until its shorter side is `img_size` (bicubic), and cropped to the
    square in the middle.

    Args:
        path: the folder. The test images may also lie in `path/val`. Without `path/train` it is one
            folder, in which each class is divided at random.
        img_size: side length in pixels that the images get.
        test_fraction: the share of each class that becomes test images, if the folder is one; at
            least one image.
        seed: of that division. The same seed gives the same division as long as the files are the
            same.
        progress: show a bar.
        max_bytes: of all images together in memory, at img_size * img_size * 3 bytes an image.

    Raises:
        ValueError: an image that cannot be read, which is named; a class without an image; a class
            of the test images that the training images have not; or too many bytes.
        FileNotFoundError: no such folder, or no folder of a class in it.

    Example:
        >>> from PIL import Image
        >>> from katlib.train import load_image_folder
        >>> for colour in ("red", "blue"):
        ...     Path("colours", colour).mkdir(parents=True)
        ...     for i in range(5):
        ...         Image.new("RGB", (40, 30 + i), colour).save(f"colours/{colour}/{i}.png")
        >>> load_image_folder("colours", img_size=16, progress=False).classes
        ('blue', 'red')
    """
    check_int("img_size", img_size, 1)
    check_number("test_fraction", test_fraction, 0, 1)
    files, classes = _find_files(user_path(path), test_fraction, seed)
    count = sum(len(of_split) for of_split in files.values())
    size = count * 3 * img_size**2
    if size > max_bytes:
        raise ValueError(
            f"{count:,} images of {img_size} x {img_size} pixels need {size / 1e9:,.1f} GB of "
            f"memory; allowed are {max_bytes / 1e9:,.1f} GB: take a smaller img_size or fewer "
            "images"
        )
    train, test = (
        _read_images([file for file, _ in files[split]], img_size, f"{split} images", progress)
        for split in SPLITS
    )
    train_labels, test_labels = (
        torch.tensor([label for _, label in files[split]]) for split in SPLITS
    )
    return ImageData(train, train_labels, test, test_labels, classes=classes)


# the path of an image, and its label
Files = list[tuple[str, int]]


def _find_files(
    folder: Path, test_fraction: float, seed: int
) -> tuple[dict[str, Files], tuple[str, ...]]:
    """The files of both splits with their labels, and the names of the classes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if not (folder / "train").is_dir():
        classes = _class_names(folder)
        return _split(_files_of(folder, classes), classes, test_fraction, seed), classes
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not tests:
        raise FileNotFoundError(
            f"{folder} has the folder train, and beside it neither test nor val; without train "
            "its images are divided at random"
        )
    classes = _class_names(folder / "train")
    test_classes = _class_names(tests[0])
    unknown = [name for name in test_classes if name not in classes]
    if unknown:
        raise ValueError(
            f"{tests[0]} has classes that {folder / 'train'} has not: {_some(unknown)}"
        )
    known = tuple(name for name in classes if name in test_classes)
    files = {
        "train": _files_of(folder / "train", classes),
        "test": _files_of(tests[0], known, classes),
    }
    return files, classes


def _class_names(folder: Path) -> tuple[str, ...]:
    """The names of the subfolders, without hidden ones such as `.ipynb_checkpoints`."""
    entries = os.scandir(folder)
    names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise FileNotFoundError(
            f"{folder} has no subfolders; needed is one for each class, with its images"
        )
    return tuple(names)


def _files_of(folder: Path, names: Sequence[str], classes: Sequence[str] | None = None) -> Files:
    """The images of some classes, in the order of their paths.

    Raises:
        ValueError: a class without an image.
    """
    labels = {name: index for index, name in enumerate(classes or names)}
    chosen = {name: labels[name] for name in names}
    files = make_dataset(str(folder), chosen, is_valid_file=_is_image, allow_empty=True)
    found = {label for _, label in files}
    empty = [name for name, label in chosen.items() if label not in found]
    if empty:
        endings = ", ".join(IMG_EXTENSIONS)
        raise ValueError(
            f"{len(empty)} classes in {folder} have no image ({_some(empty)}); files are taken for "
            f"images that end in {endings}"
        )
    return files


def _is_image(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _split(
    files: Files, classes: Sequence[str], test_fraction: float, seed: int
) -> dict[str, Files]:
    """Divides the images of each class at random; both splits get at least one of each."""
    generator = torch.Generator().manual_seed(seed)
    splits: dict[str, Files] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        own = [file for file in files if file[1] == label]
        if len(own) < 2:
            raise ValueError(
                f"the class {name} has one image; two are needed, to train on one and test on one"
            )
        tests = min(max(1, round(test_fraction * len(own))), len(own) - 1)
        order = torch.randperm(len(own), generator=generator).tolist()
        splits["test"] += [own[index] for index in order[:tests]]
        splits["train"] += [own[index] for index in order[tests:]]
    return {split: sorted(of_split) for split, of_split in splits.items()}


def _read_images(paths: Sequence[str], img_size: int, title: str, progress: bool) -> Tensor:
    """The images of files: uint8 (N, 3, img_size, img_size)."""
    images = torch.empty((len(paths), 3, img_size, img_size), dtype=torch.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], img_size)

    # Pillow decodes in several threads at once
    pool = ThreadPoolExecutor(READERS)
    try:
        bar = tqdm(desc=title, total=len(paths), disable=not progress, leave=False)
        with bar:
            for _ in pool.map(read, range(len(paths))):
                bar.update()
    finally:
        # after an image that cannot be read, the others are not waited for
        pool.shutdown(cancel_futures=True)
    return images


def read_image(path: str | os.PathLike, img_size: int) -> Tensor:
    """An image as `load_image_folder` reads it: uint8 (3, img_size, img_size).

    Raises:
        ValueError: it cannot be read; the message names the file.
    """
    try:
        with Image.open(path) as image:
            rgb = _as_rgb(image)
            resized = v2.functional.resize(rgb, [img_size], InterpolationMode.BICUBIC)
            cropped = v2.functional.center_crop(resized, [img_size, img_size])
    # there is no end to the kinds of errors that wrong bytes can cause
    except Exception as error:
        raise ValueError(f"{path} is no image that can be read: {error}") from error
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels have the mode {image.mode}, which has more than 8 bits; convert it"
        )
    # a palette with transparent colours
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")
