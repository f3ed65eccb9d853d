"""The six released KATs (arXiv 2409.10594, table 2), on the Hugging Face hub under `adamdad/`."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from katlib.architecture import KAT_BASE, KAT_SMALL, KAT_TINY, Architecture
from katlib.files import warn_not_kept

_FROM_SCRATCH = {
    "kat_tiny_patch16_224": KAT_TINY,
    "kat_small_patch16_224": KAT_SMALL,
    "kat_base_patch16_224": KAT_BASE,
}
# name: what it is; ".vitft" was trained on from a ViT
RELEASED: dict[str, Architecture] = {
    f"{name}{tag}": architecture
    for name, architecture in _FROM_SCRATCH.items()
    for tag in ("", ".vitft")
}

# the files that a repository may have its weights in, in the order in which they are tried
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# what the configuration there says of the images, in timm's words
IMAGE_KEYS = ("mean", "std", "crop_pct", "interpolation")


def repository(name: str) -> str:
    """The repository of a released model on the hub."""
    return f"adamdad/{name}"


def download(name: str) -> tuple[Path, dict[str, Any]]:
    """A released model's file in the hub's cache, and what its configuration says of the images.

    Raises:
        ImportError: huggingface_hub is not installed.
        ConnectionError: the hub cannot be reached and the file is not in its cache, or the
            repository has no such file.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{name!r} is on the Hugging Face hub; `pip install huggingface_hub` (it comes with "
            "timm), or load a file that you have"
        ) from error
    source = repository(name)
    try:
        path = _first_file(source, WEIGHT_FILES)
        config = _first_file(source, ("config.json",))
    # every error of the hub is an OSError
    except OSError as error:
        reason = str(error).splitlines()[0][:150]
        raise ConnectionError(
            f"{name!r} could not be fetched from the hub ({type(error).__name__}: {reason}). Where "
            f"there is a network, download "
            f"https://huggingface.co/{source}/resolve/main/{WEIGHT_FILES[0]}, bring the file here, "
            f"and pass its path: load_pretrained(path, architecture={name!r})"
        ) from error
    if path is None:
        raise ConnectionError(f"{source} has neither {' nor '.join(WEIGHT_FILES)} on the hub")
    return path, _image_settings(config)


def _first_file(source: str, files: tuple[str, ...]) -> Path | None:
    """The first of these files that the repository has, in the cache; None if it has none."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in files:
        try:
            return _fetch(source, file)
        # no network, which is not the same as no such file
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    return None


def _fetch(source: str, file: str) -> Path:
    """A file in the hub's cache, or in a temporary folder if that cache cannot be used."""
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(source, file))
    except (OSError, RuntimeError) as error:
        # an OSError that names a file is no error of the network; a RuntimeError: there is no home
        if isinstance(error, OSError) and not error.filename:
            raise
        advice = "they are fetched for this process only; set HF_HOME to a folder that you can use"
        warn_not_kept("released models", Path(constants.HF_HUB_CACHE), error, advice)
    # without a token, which would be read from the same place, and which public models do not need
    return Path(hf_hub_download(source, file, cache_dir=_temporary_cache().name, token=False))


@functools.cache
def _temporary_cache() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="katlib-")


def _image_settings(config: Path | None) -> dict[str, Any]:
    """What a repository's config.json says of the images.

    Raises:
        ValueError: it is damaged.
    """
    if config is None:
        return {}
    try:
        stated = json.loads(config.read_text(encoding="utf-8")).get("pretrained_cfg", {})
        return {key: stated[key] for key in IMAGE_KEYS if key in stated}
    # a file that is no UTF-8 is a ValueError too, and so is one that is no JSON
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{config} is no configuration of a model ({error}); delete it, and it is fetched again"
        ) from error
