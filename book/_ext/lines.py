"""Counts the lines of the package, for the README: `make lines`.

The number is information for a reader who plans an evening, and no target.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "katlib"
LANGUAGES = (".py", ".cpp", ".cu", ".cuh", ".js")

# What to read to understand KAT, in this order.
READ_IN_AN_EVENING = ("reference", "rational", "init", "grkan", "vit")


def count(paths: list[Path]) -> int:
    """All lines, with docstrings, comments and empty lines."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def lines_to_read() -> int:
    return count([PACKAGE / f"{name}.py" for name in READ_IN_AN_EVENING])


def lines_of_the_package() -> int:
    return count([path for path in PACKAGE.rglob("*") if path.suffix in LANGUAGES])


def main() -> None:
    for name in READ_IN_AN_EVENING:
        print(f"{name:10} {count([PACKAGE / f'{name}.py']):6,}")
    print(f"{'together':10} {lines_to_read():6,}")
    print(f"{'katlib':10} {lines_of_the_package():6,}")


if __name__ == "__main__":
    main()
