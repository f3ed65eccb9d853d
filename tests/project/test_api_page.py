"""The API reference: every public name, and only names that exist, are on its page."""

import importlib
import inspect
import re
from pathlib import Path

import api
import pytest

import katlib

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "_build" / "html" / "book" / "api.html"


@pytest.fixture(scope="module")
def page():
    if not PAGE.exists():
        pytest.skip("the book is not built; `make test` builds it first")
    return PAGE.read_text()


def entries(page):
    return set(re.findall(r'<dt class="sig[^"]*" id="([^"]+)"', page))


def public_methods(name):
    """The documented methods of a public class, as `Class.method`."""
    thing = getattr(katlib, name)
    if not inspect.isclass(thing):
        return set()
    return {
        f"{name}.{key}"
        for key, method in vars(thing).items()
        if inspect.isroutine(method) and not key.startswith("_") and method.__doc__
    }


@pytest.mark.book
@pytest.mark.parametrize("name", katlib.__all__)
def test_every_public_name_is_on_the_page_with_its_methods(page, name):
    assert {f"katlib.{path}" for path in {name} | public_methods(name)} <= entries(page)


@pytest.mark.book
def test_every_entry_exists(page):
    methods = set().union(*map(public_methods, katlib.__all__))
    for path in entries(page) - {f"katlib.{name}" for name in methods}:
        module, _, name = path.rpartition(".")
        if module.rpartition(".")[2][:1].isupper():
            # a method of a class
            module, _, class_name = module.rpartition(".")
            assert hasattr(getattr(importlib.import_module(module), class_name), name), path
            continue
        # import_module and not getattr, because katlib.rational is a function too
        assert hasattr(importlib.import_module(module), name), path


@pytest.mark.book
def test_the_page_has_no_errors(page):
    assert "system-message" not in page
    assert "problematic" not in page


def test_docstrings_keep_their_signs_on_the_page():
    example = ["", "Example:", "    >>> a * b", "    2"]
    lines = ["sum |b_j| |x|^j, *args and b_1 .. b_n, mimetic_", *example]
    api.escape_docstring(None, None, None, None, None, lines)
    assert lines == [r"sum \|b_j\| \|x\|^j, \*args and b_1 .. b_n, mimetic\_", *example]
