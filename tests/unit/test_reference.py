"""The API reference: every public name is on its page, says what it must say, and has an example that runs."""

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import katlib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import api


def documented(prefix: str, thing) -> dict:
    """{path: docstring} of a public name and of its own public methods."""
    found = {prefix: inspect.getdoc(thing) or ""}
    if inspect.isclass(thing):
        found |= {
            f"{prefix}.{key}": inspect.getdoc(method)
            for key, method in vars(thing).items()
            if inspect.isroutine(method) and not key.startswith("_") and method.__doc__
        }
    return found


DOCUMENTED = {
    path: text
    for name in katlib.__all__
    for path, text in documented(name, getattr(katlib, name)).items()
}


def run(path: str, text: str) -> doctest.TestResults:
    example = doctest.DocTestParser().get_doctest(
        text, {"katlib": katlib, "torch": torch}, path, None, 0
    )
    told = []
    results = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    ).run(example, out=told.append)
    assert not results.failed, "".join(told)
    return results


@pytest.mark.parametrize("path", [path for path, text in DOCUMENTED.items() if ">>>" in text])
def test_the_example_gives_what_it_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for those that write a file
    assert run(path, DOCUMENTED[path]).attempted >= 1


@pytest.mark.parametrize("name", katlib.__all__)
def test_every_public_name_says_what_it_is_and_has_an_example_that_is_run(name):
    text = DOCUMENTED[name]
    examples = doctest.DocTestParser().get_examples(text)
    assert any(not example.options.get(doctest.SKIP) for example in examples)
    assert text.splitlines()[0].endswith(".") and "Example" in text


def test_an_example_that_is_wrong_is_found():
    with pytest.raises(AssertionError, match="Expected"):
        run("a wrong one", ">>> katlib.gain('relu') < 0\nTrue")


def test_every_public_name_and_only_names_that_exist_are_on_the_page():
    page = ROOT / "_build" / "html" / "book" / "api.html"
    if not page.exists():
        pytest.skip("the book is not built; `make test` builds it first")
    text = page.read_text()
    ids = set(re.findall(r'<dt class="sig[^"]*" id="([^"]+)"', text))
    assert {f"katlib.{name}" for name in katlib.__all__} <= ids
    assert {f"katlib.{path}" for path in DOCUMENTED} <= ids  # methods too
    for path in ids - {f"katlib.{name}" for name in DOCUMENTED}:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), (
            path
        )  # not getattr: katlib.rational is a function as well
    assert "system-message" not in text and "problematic" not in text


def test_docstrings_keep_their_signs_on_the_page():
    lines = [
        "sum |b_j| |x|^j, *args and b_1 .. b_n, mimetic_",
        "",
        "Example:",
        "    >>> a * b",
        "    2",
    ]
    api.plain_text(None, None, None, None, None, lines)
    assert lines == [
        r"sum \|b_j\| \|x\|^j, \*args and b_1 .. b_n, mimetic\_",
        "",
        "Example:",
        "    >>> a * b",
        "    2",
    ]
