"""Files that are whole or absent, and one lock for what only one process should do.

katlib writes its files through `write_whole`, so that a reader never meets half a file, even if the
writer is killed or two processes write the same one.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives the path of a temporary file to write; it becomes `path` if the block does not raise.

    The temporary file lies in the same folder, under a name that no other process or thread has, so
    that the final rename is atomic. If the block raises, it is removed and `path` stays as it was.

    Example:
        >>> with write_whole("record.json") as temporary:
        ...     _ = temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
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
    return FileLock(f"{os.fspath(path)}.lock")
