"""Every public name says what it must say, and its example runs."""

import doctest
import importlib
import inspect

import pytest
import torch

import katlib

MODULES = [
    "architecture",
    "book.cost",
    "files",
    "fit",
    "grkan",
    "init",
    "rational",
    "spline",
    "vit",
]


def documented(prefix: str, thing: object) -> dict[str, str]:
    """{path: docstring} of a public name and of its own public methods."""
    found = {prefix: inspect.getdoc(thing) or ""}
    if inspect.isclass(thing):
        found |= {
            f"{prefix}.{name}": inspect.getdoc(method) or ""
            for name, method in vars(thing).items()
            if inspect.isroutine(method) and not name.startswith("_") and method.__doc__
        }
    return found


DOCUMENTED = {
    path: text
    for name in katlib.__all__
    for path, text in documented(name, getattr(katlib, name)).items()
}


def run(path: str, text: str) -> doctest.TestResults:
    names = {"katlib": katlib, "torch": torch}
    example = doctest.DocTestParser().get_doctest(text, names, path, None, 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    output: list[str] = []
    results = doctest.DocTestRunner(optionflags=flags).run(example, out=output.append)
    assert not results.failed, "".join(output)
    return results


@pytest.mark.parametrize("path", [path for path, text in DOCUMENTED.items() if ">>>" in text])
def test_the_example_gives_what_it_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for those that write a file
    assert run(path, DOCUMENTED[path]).attempted >= 1


@pytest.mark.parametrize("name", katlib.__all__)
def test_every_public_name_has_an_example_that_is_run(name):
    examples = doctest.DocTestParser().get_examples(DOCUMENTED[name])
    assert any(not example.options.get(doctest.SKIP) for example in examples)
    assert "Example" in DOCUMENTED[name]


@pytest.mark.parametrize("name", katlib.__all__)
def test_every_public_name_says_in_one_line_what_it_is(name):
    assert DOCUMENTED[name].splitlines()[0].endswith(".")


def test_an_example_that_is_wrong_is_found():
    with pytest.raises(AssertionError, match="Expected"):
        run("a wrong one", ">>> katlib.gain('relu') < 0\nTrue")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"katlib.{name}")
    names = {"katlib": katlib, "torch": torch, **vars(module)}
    result = doctest.testmod(module, globs=names)
    assert result.attempted > 0
    assert result.failed == 0
