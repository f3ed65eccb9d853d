"""Packages that come with an extra of katlib, and the error where one is missing."""

from importlib.util import find_spec


def require(extra: str, *packages: str) -> None:
    """Raises an ImportError that names the extra to install, if one of these packages is missing.

    Args:
        extra: a key of `[project.optional-dependencies]` in pyproject.toml.
        packages: import names.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} cannot be found; install katlib with its extra {extra!r}, "
            f"for example: pip install -e '.[{extra}]'",
            name=missing[0],
        )
