"""Where a number was measured: the device, and the commit that the package was run from."""

import os
import platform
import subprocess
from pathlib import Path

import torch

# of the repository, if this is a checkout; an installed package has none
ROOT = Path(__file__).resolve().parent.parent


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _processor_name() or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _processor_name() -> str | None:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), None
    )


def git_commit() -> str:
    """The commit that this package was run from, 12 digits.

    A "+" marks changes that are not committed, other than in `results`. Where there is no git it is
    $KATLIB_COMMIT or "unknown".
    """
    if not (ROOT / ".git").exists():
        return os.environ.get("KATLIB_COMMIT", "unknown")
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changes = _git(
            "status", "--porcelain", "--untracked-files=no", ":/", ":(top,exclude)results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, encoding="utf-8", errors="replace"
    )
    return done.stdout.strip()
