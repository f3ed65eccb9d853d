"""The README and the other pages in Markdown name commands, files and numbers that are there."""

import importlib.util
import re

import lines
import matplotlib
import pytest
from dependencies import EXTRAS, ROOT, constraints

from katlib.book import plot
from katlib.book.results import stored_runs

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "results/README.md",
    "benchmarks/README.md",
)
README = (ROOT / "README.md").read_text()
FOLDERS = (
    "katlib",
    "book",
    "notebooks",
    "tests",
    "benchmarks",
    "examples",
    "results",
    r"\.ci",
    r"\.github",
)
PLACEHOLDERS = ("DEVICE", "CONDITION", "NAME", "runs/")


@pytest.fixture(params=PAGES)
def page(request):
    return (ROOT / request.param).read_text()


def code_of(page: str) -> list[str]:
    """What is set as code: between backticks, and the lines of listings."""
    listings = re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.S)
    in_text = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S))
    return in_text + [line for listing in listings for line in listing.splitlines()]


def test_every_make_target_that_a_page_names_exists(page):
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    named = [match[1] for code in code_of(page) if (match := re.match(r"make ([a-z]+)", code))]
    assert set(named) <= set(targets)


def test_every_program_that_a_page_runs_exists(page):
    code = "\n".join(code_of(page))
    scripts = [s for s in re.findall(r"python (\S+\.py)", code) if "$" not in s]
    assert not [script for script in scripts if not (ROOT / script).exists()]
    modules = re.findall(r"python -m (katlib[\w.]*)", code)
    assert not [module for module in modules if not importlib.util.find_spec(module)]


def test_every_file_that_a_page_names_exists(page):
    paths = rf"(?<![\w/.$])(?:{'|'.join(FOLDERS)})/[\w./-]*"
    named = [
        path
        for code in code_of(page)
        for path in re.findall(paths, code)
        if not any(placeholder in code for placeholder in PLACEHOLDERS)
    ]
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_extra_that_a_page_installs_exists(page):
    named = re.findall(r"""pip install [^\n]*?\.\[([\w,]+)\]""", page)
    assert {extra for extras in named for extra in extras.split(",")} <= set(EXTRAS)


def test_no_line_of_a_page_is_long(page):
    """Lines of tables may be."""
    long = [line for line in page.splitlines() if len(line) > 160 and not line.startswith("|")]
    assert not long


def test_the_readme_explains_every_extra():
    explained = re.findall(r"^\| `(\w+)` \|", README, re.M)
    assert set(EXTRAS) <= set(explained)


@pytest.mark.parametrize(
    "sentence, counted",
    [
        (r"are what one reads in an evening: about ([\d,]+)\s+lines", lines.lines_to_read),
        (r"whole package has about ([\d,]+)\s+lines", lines.lines_of_the_package),
    ],
    ids=["to read", "whole package"],
)
def test_the_readme_says_how_many_lines_there_are(sentence, counted):
    """In round numbers; `make lines` prints the exact ones."""
    match = re.search(sentence, README)
    assert match
    assert int(match[1].replace(",", "")) == pytest.approx(counted(), rel=0.1)


def test_the_readme_lists_what_to_read_in_order():
    listed = re.search(r"((?:`\w+`(?:, | and ))+`\w+`) are what one reads", README)
    assert listed
    assert tuple(re.findall(r"`(\w+)`", listed[1])) == lines.READ_IN_AN_EVENING


def split_numbers(svg: str) -> tuple[str, list[float]]:
    """The strokes without their coordinates, and these."""
    number = re.compile(r"-?\d+\.\d+")
    return number.sub("", svg), [float(n) for n in number.findall(svg)]


def test_the_readme_picture_is_the_one_that_the_code_draws_from_the_stored_run():
    pinned = constraints()["matplotlib"]
    if matplotlib.__version__ != pinned:
        pytest.skip(
            f"drawn by matplotlib {pinned}; {matplotlib.__version__} may lay it out otherwise"
        )
    runs = stored_runs(preset="cifar-nano", mlp="grkan", seed=0)
    run = max(runs, key=lambda run: len(run["epochs"]))
    strokes, coordinates = split_numbers(plot.svg(plot.activations(run["activations"])).decode())
    picture = (ROOT / "book" / "_static" / "learned_activations.svg").read_text()
    stored_strokes, stored_coordinates = split_numbers(picture)
    assert strokes == stored_strokes
    # their last digits may depend on the processor
    assert coordinates == pytest.approx(stored_coordinates, abs=0.01)
