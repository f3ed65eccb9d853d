"""Files that are whole or absent, the cache folder, and one lock for what one process should do.

katlib writes its files through `write_whole`, so that a reader never meets half a file, even if the
writer is killed or two processes write the same one.
"""

import functools
import json
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def user_path(path: str | os.PathLike) -> Path:
    """A path as a user gives it, with `~` expanded, and absolute, so that it outlives `os.chdir`.

    Raises:
        RuntimeError: it begins with `~`, and this user has no home.

    Example:
        >>> user_path("/data/cifar").as_posix()
        '/data/cifar'
        >>> user_path("~/runs").is_absolute()
        True
    """
    return Path(path).expanduser().absolute()


def cache_folder(chosen: str | os.PathLike | None = None) -> Path:
    """The folder for what katlib can make or download again. It need not exist.

    Args:
        chosen: where the user wants it. None or empty stands for `katlib` in the user's cache
            folder: $XDG_CACHE_HOME if that is absolute, $LOCALAPPDATA on Windows, else ~/.cache.

    Raises:
        RuntimeError: this user has no home, as in a container that runs under an unknown number.

    Example:
        >>> cache_folder("/data").as_posix()
        '/data'
    """
    if chosen:
        return user_path(chosen)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        folder = Path(os.environ.get(variable, "")).expanduser()
        # the XDG specification says to ignore a relative path
        if folder.is_absolute():
            return folder / "katlib"
    return user_path("~/.cache/katlib")


def warn_not_kept(what: str, folder: Path | None, error: Exception, advice: str) -> None:
    """Warns that a cache cannot be used, once in a process for each reason.

    Args:
        what: what would have been kept.
        folder: the cache; None if it is not known where it should be.
        error: what went wrong.
        advice: what follows from it and what to do.
    """
    reason = getattr(error, "strerror", None) or str(error)
    _warn_once(f"katlib cannot keep {what} in {folder or 'a cache folder'} ({reason}): {advice}")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


@contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives the path of a temporary file to write; it becomes `path` if the block does not raise.

    The temporary file lies in the same folder, under a name that no other process or thread has, so
    that the final rename is atomic. If the block raises, it is removed and `path` stays as it was.
    Who may read the file is as for any new file, whatever the block does: safetensors would let
    nobody else read it.

    Example:
        >>> with write_whole("record.json") as temporary:
        ...     _ = temporary.write_text("{}")
    """
    path = user_path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    temporary.touch(exist_ok=False)
    try:
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, whole or not at all, in UTF-8."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, record: object, **options) -> None:
    """Writes `record` as one line of JSON, whole or not at all; `options` as for `json.dumps`."""
    write_text(path, json.dumps(record, **options) + "\n")


def lock(path: str | os.PathLike) -> FileLock:
    """A lock that one process (and one of its threads) holds at a time, kept beside `path`.

    The operating system releases it when its holder dies, so it is never left behind locked.

    Example:
        >>> with lock("rational.so"):
        ...     pass  # compile it, unless the process before has
    """
    return FileLock(f"{user_path(path)}.lock")
