"""The chapters' notebooks.

How they begin and end, their stored outputs, their exercises, and the copies for class and Colab.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

import notebooks as tool

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def tags_of(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def cells_of(notebook: dict, kind: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def sources_of(notebook: dict) -> list[str]:
    return [source_of(cell) for cell in notebook["cells"]]


def outputs_of(notebook: dict) -> list[dict]:
    return [output for cell in cells_of(notebook, "code") for output in cell["outputs"]]


def is_solution(source: str) -> bool:
    return source.startswith("# @title Solution")


# ---- how a chapter begins and ends


def test_the_first_cell_installs_katlib_from_the_address_in_the_configuration(notebook):
    first = cells_of(notebook, "code")[0]
    assert source_of(first) == tool.setup_cell(tool.address())


def test_a_chapter_opens_with_a_question_and_its_run_time(notebook):
    opening = source_of(cells_of(notebook, "markdown")[0])
    assert "**The question.**" in opening
    assert re.search(r"Run time: \d+ s \(.+\)\.\*", opening)


def test_a_chapter_closes_with_what_was_learned_and_what_to_read(notebook):
    closing = source_of(cells_of(notebook, "markdown")[-1])
    assert "## What we learned" in closing
    assert "### Further reading" in closing


# ---- stored outputs


def test_the_cells_were_run_in_order(notebook):
    code = cells_of(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_no_stored_output_is_an_error_or_a_warning(notebook):
    for output in outputs_of(notebook):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


def test_no_stored_output_holds_a_path_or_a_time_of_day(notebook):
    path_or_time = r"/(home|root|tmp|Users)/|\b\d\d:\d\d:\d\d\b"
    assert not [
        output for output in outputs_of(notebook) if re.search(path_or_time, json.dumps(output))
    ]


def test_key_numbers_are_compared(notebook):
    assert sum("nbval-check-output" in tags_of(cell) for cell in notebook["cells"]) >= 3


def test_long_drawings_are_folded_so_that_the_page_can_be_read(notebook):
    for cell in cells_of(notebook, "code"):
        source = source_of(cell)
        if "plot.figure(" in source and source.count("\n") > 14:
            assert "hide-input" in cell["metadata"]["tags"], source[:200]


# ---- the device


@pytest.fixture
def cell_of_the_device(notebook):
    """The second code cell, that of the imports, in a notebook that uses a GPU."""
    code = cells_of(notebook, "code")
    if not any("torch.cuda.is_available()" in source_of(cell) for cell in code):
        pytest.skip("computes on the CPU only")
    return code[1]


def test_a_notebook_that_uses_a_gpu_says_which_it_found(cell_of_the_device):
    assert "say_device(" in source_of(cell_of_the_device)
    assert len(cell_of_the_device["outputs"]) == 1


def test_what_is_said_of_the_device_is_not_compared(cell_of_the_device):
    assert "nbval-check-output" not in tags_of(cell_of_the_device)


def test_what_is_said_of_the_device_is_one_line_of_the_page(cell_of_the_device):
    said = "".join(cell_of_the_device["outputs"][0]["text"])
    one_line = r"(No GPU, \d+ CPU threads?: .+\. With a GPU|NVIDIA .+): .+\.\n"
    assert re.fullmatch(one_line, said)
    assert len(said) <= 98


# ---- exercises


@pytest.fixture
def exercises(notebook):
    """(task, check, solution): an exercise is three cells one after the other."""
    cells = notebook["cells"]
    tasks = [
        i for i, cell in enumerate(cells) if re.search(r"^### \d+\.\d+ ", source_of(cell), re.M)
    ]
    return [(cells[i], cells[i + 1], cells[i + 2]) for i in tasks]


def test_every_chapter_has_exercises(exercises):
    assert exercises


def test_every_exercise_has_a_check(exercises):
    for _, check, _ in exercises:
        assert "def check_" in source_of(check)


def test_the_answer_of_an_exercise_is_left_to_the_reader(exercises):
    for _, check, _ in exercises:
        printed = [line for output in check["outputs"] for line in output.get("text", [])]
        assert "Right" not in "".join(printed)


def test_every_exercise_has_a_folded_solution_that_is_checked(exercises):
    for _, _, solution in exercises:
        assert is_solution(source_of(solution))
        assert "hide-input" in solution["metadata"]["tags"]
        assert "assert check_" in source_of(solution)


# ---- the copy for class


@pytest.fixture
def copy_for_class(notebook):
    return tool.without_solutions(notebook)


def test_the_copy_for_class_has_everything_but_the_solutions(notebook, copy_for_class):
    before, after = sources_of(notebook), sources_of(copy_for_class)
    solutions = [source for source in before if is_solution(source)]
    assert solutions
    assert len(after) == len(before) - len(solutions)
    assert not any("@title Solution" in source for source in after)


def test_the_copy_for_class_has_every_check(notebook, copy_for_class):
    before, after = sources_of(notebook), sources_of(copy_for_class)
    checks = [re.findall(r"def check_\d+_\d+", "\n".join(sources)) for sources in (before, after)]
    assert checks[0] == checks[1]
    assert len(checks[0]) >= sum(map(is_solution, before)) - 1


def test_the_copy_for_class_gives_no_answer_away(copy_for_class):
    last_outputs = [cell.get("outputs") for cell in copy_for_class["cells"][-4:]]
    assert "Right" not in json.dumps(last_outputs)


def test_the_copy_for_class_links_to_no_page_of_the_book(copy_for_class):
    assert "](../" not in "".join(sources_of(copy_for_class))


def test_a_solution_in_words_is_left_out_of_the_copy_for_class():
    text = ["Ask.\n", "```{dropdown} A solution\n", "secret\n", "```\n", "Go on.\n"]
    notebook = {"cells": [{"cell_type": "markdown", "metadata": {}, "source": text}]}
    assert sources_of(tool.without_solutions(notebook)) == ["Ask.\nGo on.\n"]


# ---- the repository's address, for Colab

ADDRESS = "https://github.com/someone/kat"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A copy of what `make colab` writes into."""
    (tmp_path / "notebooks").mkdir()
    for name in ("_config.yml", "README.md", *(f"notebooks/{path.name}" for path in NOTEBOOKS)):
        (tmp_path / name).write_text((ROOT / name).read_text())
    copies = [tmp_path / "notebooks" / path.name for path in NOTEBOOKS]
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "NOTEBOOKS", copies)
    return tmp_path


def test_the_address_is_written_into_the_configuration(repository):
    tool.write_address(ADDRESS)
    assert tool.address() == ADDRESS
    buttons = yaml.safe_load((repository / "_config.yml").read_text())["launch_buttons"]
    assert buttons["colab_url"] == "https://colab.research.google.com"


def test_the_readme_gets_a_link_for_every_notebook(repository):
    tool.write_address(ADDRESS)
    link = "colab.research.google.com/github/someone/kat/blob/main/notebooks/"
    assert (repository / "README.md").read_text().count(link) == len(NOTEBOOKS)


def test_the_address_is_written_into_every_notebook(repository):
    tool.write_address(ADDRESS)
    line = f'REPOSITORY = \\"{ADDRESS}\\"'
    copies = (repository / "notebooks").glob("*.ipynb")
    assert all(line in copy.read_text() for copy in copies)


def test_the_address_is_taken_back_everywhere(repository):
    before = tool.address()
    tool.write_address(ADDRESS)
    tool.write_address(before)
    changed = [
        path
        for path in NOTEBOOKS
        if (repository / "notebooks" / path.name).read_text() != path.read_text()
    ]
    assert not changed
    assert (repository / "README.md").read_text() == (ROOT / "README.md").read_text()
