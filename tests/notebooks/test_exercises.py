"""Every check of the exercises is attacked: wrong answers are refused, right ones are taken.

A check is run as a reader may run it who has come to the exercise at once: after the cell of the
imports, and after no other cell of the chapter.
"""

import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from attacks import Attack, changed

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
HERE = Path(__file__).parent


def attacks_of(module: str) -> dict[str, Attack]:
    return importlib.import_module(f"attacks.{module}").ATTACKS


def notebook_of(module: str) -> Path:
    """The notebook whose attacks a module has."""
    kind, number = module.split("_")
    prefix = f"{int(number):02d}" if kind == "chapter" else f"A{number}"
    (path,) = NOTEBOOKS.glob(f"{prefix}_*.ipynb")
    return path


MODULES = sorted(path.stem for path in (HERE / "attacks").glob("[ac]*_*.py"))
EXERCISES = [(module, name) for module in MODULES for name in attacks_of(module)]


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


_loaded: dict[str, dict] = {}


def check_of(module: str, name: str):
    """The check of an exercise, after the imports and the cells of the checks alone."""
    if module not in _loaded:
        imports, *others = code_of(notebook_of(module))[1:]
        namespace: dict = {}
        exec(imports, namespace)
        for source in others:
            if re.search(r"^def check_\w+\(", source, re.M):
                exec(source, namespace)
        _loaded[module] = namespace
    return _loaded[module][f"check_{name.replace('.', '_')}"]


# ---- attacks on any answer


def of_numbers(change):
    """An attack that changes numbers: in a list, in a tensor, in a function's result."""

    def attack(answer):
        if callable(answer):
            return changed(answer, change)
        if isinstance(answer, torch.Tensor):
            return change(answer)
        if isinstance(answer, (list, tuple)):
            return type(answer)(attack(item) for item in answer)
        return change(answer)

    return attack


def constantly(value):
    """An attack that puts a value in the place of every number."""

    def change(number):
        if isinstance(number, torch.Tensor):
            return torch.full_like(number, value)
        return value

    return of_numbers(change)


def is_numeric(answer) -> bool:
    if isinstance(answer, (list, tuple)):
        return all(map(is_numeric, answer))
    return callable(answer) or isinstance(answer, (int, float, torch.Tensor))


GENERAL = {
    "None": lambda answer: (lambda *_: None) if callable(answer) else None,
    "a word": lambda answer: (lambda *_: "x") if callable(answer) else "x",
    "nothing": lambda answer: (lambda *_: ()) if callable(answer) else (),
    "not a number": constantly(math.nan),
    "infinity": constantly(math.inf),
    "zero": constantly(0.0),
    "a constant": constantly(0.7310586),
    "the other sign": of_numbers(lambda number: -number),
    "one more": of_numbers(lambda number: number + 1),
    "one less": of_numbers(lambda number: number - 1),
    "twice": of_numbers(lambda number: 2 * number),
    "another shape": lambda answer: (
        changed(answer, lambda value: torch.as_tensor(value)[None])
        if callable(answer)
        else [answer, answer]
    ),
}


@pytest.mark.parametrize("module, name", EXERCISES)
def test_right_answers_are_taken(module, name):
    check, attack = check_of(module, name), attacks_of(module)[name]
    assert len(attack.right) >= 2, "at least one right answer other than the solution"
    refused = [number for number, answer in enumerate(attack.right) if check(*answer) is not True]
    assert not refused


@pytest.mark.parametrize("module, name", EXERCISES)
def test_wrong_answers_are_refused_with_a_word(module, name, capsys):
    check, attack = check_of(module, name), attacks_of(module)[name]
    assert attack.wrong
    for what, answer in attack.wrong.items():
        capsys.readouterr()
        assert check(*answer) is False, what
        assert capsys.readouterr().out.startswith("Not yet"), what


@pytest.mark.parametrize("module, name", EXERCISES)
@pytest.mark.parametrize("general", GENERAL)
def test_general_attacks_are_refused(module, name, general, capsys):
    check, attack = check_of(module, name), attacks_of(module)[name]
    solution = attack.right[0]
    for place, argument in enumerate(solution):
        if general not in ("None", "a word", "nothing") and not is_numeric(argument):
            continue
        answer = (*solution[:place], GENERAL[general](argument), *solution[place + 1 :])
        taken = check(*answer)
        assert taken is (general in attack.harmless), f"argument {place}"
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("module", MODULES)
def test_every_exercise_of_the_chapter_is_attacked(module):
    checks = re.findall(r"^def check_(\w+)\(", "\n".join(code_of(notebook_of(module))), re.M)
    assert {check.replace("_", ".") for check in checks} == set(attacks_of(module))
