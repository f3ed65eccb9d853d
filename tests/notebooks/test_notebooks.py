"""The chapters' notebooks.

How they begin and end, their stored outputs, their exercises, and the copies for class and Colab.
"""

import io
import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

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
    assert source_of(first) == tool.setup_cell(*tool.address())


def test_a_chapter_says_its_run_time(notebook):
    opening = source_of(cells_of(notebook, "markdown")[0])
    assert re.search(r"Run time: \d+ s \(.+\)\.\*", opening)


def test_a_chapter_opens_with_something_that_happens(notebook):
    """A visible cell with an output comes before the first section."""
    opening = source_of(notebook["cells"][0])
    if "**The question.**" in opening:
        # how the first edition opened
        return
    cells = notebook["cells"]
    first_section = next(i for i, cell in enumerate(cells) if "\n## " in "\n" + source_of(cell))
    happens = [
        cell
        for cell in cells_of({"cells": cells[:first_section]}, "code")
        if cell["outputs"] and "hide-input" not in tags_of(cell)
    ]
    assert happens


def test_a_visible_cell_fits_on_a_screen(notebook):
    if "**The question.**" in source_of(notebook["cells"][0]):
        return
    for cell in cells_of(notebook, "code"):
        shown = not {"hide-input", "hide-cell"} & set(tags_of(cell))
        if shown and "def check_" not in source_of(cell):
            assert source_of(cell).count("\n") < 25, source_of(cell)[:200]


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
        i for i, cell in enumerate(cells) if re.search(r"^### A?\d+\.\d+ ", source_of(cell), re.M)
    ]
    return [(cells[i], cells[i + 1], cells[i + 2]) for i in tasks]


def test_every_chapter_has_exercises(notebook, exercises):
    is_appendix = source_of(notebook["cells"][0]).startswith("# A")
    assert exercises or is_appendix


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
    assert solutions or source_of(notebook["cells"][0]).startswith("# A")
    assert len(after) == len(before) - len(solutions)
    assert not any("@title Solution" in source for source in after)


def test_the_copy_for_class_has_every_check(notebook, copy_for_class):
    before, after = sources_of(notebook), sources_of(copy_for_class)
    checks = [re.findall(r"def check_A?\d+_\d+", "\n".join(sources)) for sources in (before, after)]
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
    tool.write_address(ADDRESS, "autumn/2027")
    configuration = yaml.safe_load((repository / "_config.yml").read_text())
    assert tool.address() == (ADDRESS, "autumn/2027")
    assert configuration["repository"] == {"url": ADDRESS, "branch": "autumn/2027"}
    assert configuration["launch_buttons"]["colab_url"] == "https://colab.research.google.com"


def test_the_readme_gets_a_link_for_every_notebook(repository):
    tool.write_address(ADDRESS, "autumn/2027")
    link = "https://colab.research.google.com/github/someone/kat/blob/autumn/2027/notebooks/"
    assert (repository / "README.md").read_text().count(link) == len(NOTEBOOKS)


def test_the_address_is_written_into_every_notebook(repository):
    tool.write_address(ADDRESS, "autumn/2027")
    line = f'REPOSITORY, BRANCH = \\"{ADDRESS}\\", \\"autumn/2027\\"'
    copies = (repository / "notebooks").glob("*.ipynb")
    assert all(line in copy.read_text() for copy in copies)


def test_the_address_is_taken_back_everywhere(repository):
    before = tool.address()
    tool.write_address(ADDRESS, "autumn/2027")
    tool.write_address(*before)
    changed = [
        path
        for path in NOTEBOOKS
        if (repository / "notebooks" / path.name).read_text() != path.read_text()
    ]
    assert not changed
    for name in ("README.md", "_config.yml"):
        assert (repository / name).read_text() == (ROOT / name).read_text()


@pytest.mark.parametrize("suffix", ["", ".git", "/", ".git/"])
@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/someone/kat",
        "https://someone@github.com/someone/kat",
        "https://someone:secret@github.com/someone/kat",
        "https://www.github.com/someone/kat",
        "http://GitHub.com/someone/kat",
        "ssh://git@github.com/someone/kat",
        "ssh://git@github.com:22/someone/kat",
        "ssh://git@ssh.github.com:443/someone/kat",
        "git://github.com/someone/kat",
        "git@github.com:someone/kat",
        "git@github.com:/someone/kat",
        "org-7@github.com:someone/kat",
        "github.com:someone/kat",
    ],
)
def test_every_form_of_a_remote_on_github_has_the_public_address(remote, suffix):
    assert tool.address_on_github(remote + suffix) == ADDRESS


def test_an_owner_of_digits_is_no_port():
    assert tool.address_on_github("git@github.com:123/kat.git") == "https://github.com/123/kat"


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "https://gitlab.com/someone/kat",
        "https://example.org/github.com/someone/kat",
        "https://github.com.example.org/someone/kat",
        "https://notgithub.com/someone/kat",
        "https://github.com/someone",
        "../kat",
    ],
)
def test_a_remote_elsewhere_has_no_public_address(remote):
    assert tool.address_on_github(remote) == ""


@pytest.fixture
def clone(repository):
    """The copy as a git repository, and a function that runs git in it."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True)

    git("init", "--quiet", "--initial-branch", "autumn")
    return git


def test_make_colab_takes_the_remote_and_the_branch(clone):
    clone("remote", "add", "origin", "https://someone:secret@github.com/someone/kat.git")
    tool.colab()
    assert tool.address() == (ADDRESS, "autumn")


def test_make_colab_needs_a_remote_on_github_and_shows_no_password(clone):
    clone("remote", "add", "origin", "https://someone:secret@gitlab.com/someone/kat.git")
    with pytest.raises(SystemExit, match=r"is not there \(https://gitlab\.com/someone/kat\.git\)"):
        tool.colab()
    assert tool.address()[0] == ""


def test_make_colab_needs_a_branch(clone):
    clone("remote", "add", "origin", ADDRESS)
    author = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    clone(*author, "commit", "--allow-empty", "--message", "first")
    clone("switch", "--detach")
    with pytest.raises(SystemExit, match="none is checked out"):
        tool.colab()


# ---- a notebook that Colab has saved

NAME = "0123456789abcdef0123456789abcdef"


def notebook_of_colab(models: dict) -> dict:
    """A notebook with one live figure as Colab saves it to GitHub: without "state"."""
    view = {"version_major": 2, "version_minor": 0, "model_id": NAME}
    output = {"output_type": "display_data", "data": {tool.WIDGET_VIEW: view}, "metadata": {}}
    button = {"cell_type": "markdown", "metadata": {"id": "view-in-github"}, "source": "[Colab]()"}
    figure = {
        "cell_type": "code",
        "metadata": {"id": "a1b2", "outputId": "c3d4", "colab": {"height": 17}, "tags": ["keep"]},
        "execution_count": 1,
        "outputs": [output],
        "source": "1 + 1",
    }
    opening = {"cell_type": "markdown", "metadata": {"id": "x"}, "source": "# Run time: 1 s (x).*"}
    metadata = {"colab": {"provenance": []}, "widgets": {tool.WIDGET_STATE: models}}
    return {
        "nbformat": 4,
        "nbformat_minor": 0,
        "metadata": metadata,
        "cells": [button, opening, figure],
    }


def model_of_a_figure() -> dict:
    state = {"_esm": "export default {}", "_anywidget_id": "x"}
    return {"model_module": "anywidget", "model_name": "AnyModel", "state": state}


FORMS = {
    "Colab's": {NAME: model_of_a_figure()},
    "Jupyter's": {"version_major": 2, "version_minor": 0, "state": {NAME: model_of_a_figure()}},
    "repaired": {"state": {}, NAME: model_of_a_figure()},
}


@pytest.mark.parametrize("form", FORMS)
def test_widget_models_are_found_in_every_form(form):
    assert tool.widget_models(notebook_of_colab(FORMS[form])) == {NAME: model_of_a_figure()}


def test_a_notebook_without_widgets_has_no_models():
    assert tool.widget_models({"metadata": {}}) == {}


def test_a_notebook_that_colab_has_saved_can_be_run(tmp_path, monkeypatch):
    path = tmp_path / "01_colab.ipynb"
    path.write_text(json.dumps(notebook_of_colab(FORMS["Colab's"])))
    monkeypatch.setattr(tool, "NOTEBOOKS", [path])
    tool.execute([])
    stored = json.loads(path.read_text())
    assert "widgets" not in stored["metadata"]
    assert [cell["metadata"] for cell in stored["cells"]] == [{}, {"tags": ["keep"]}]
    assert stored["cells"][1]["outputs"][0]["data"]["text/plain"] == ["2"]


@pytest.fixture
def build(tmp_path):
    """A function that builds a page from a notebook: its HTML, and the warnings."""

    def build_(notebook: dict) -> tuple[str, str]:
        (tmp_path / "index.ipynb").write_text(json.dumps(notebook))
        folders = [tmp_path, None, tmp_path / "out", tmp_path / "trees", "html"]
        settings = {
            "extensions": ["myst_nb", "live"],
            "nb_execution_mode": "off",
            "nb_ipywidgets_js": {},
        }
        warnings = io.StringIO()
        with docutils_namespace():
            app = Sphinx(*folders, confoverrides=settings, status=None, warning=warnings)
            app.build()
        return (tmp_path / "out" / "index.html").read_text(), warnings.getvalue()

    return build_


@pytest.mark.parametrize("form", FORMS)
def test_a_page_holds_the_state_of_its_figure_in_jupyters_form(build, form):
    page, warnings = build(notebook_of_colab(FORMS[form]))
    stored = re.findall(
        rf'<script type="{re.escape(tool.WIDGET_STATE)}">(.*?)</script>', page, re.S
    )
    assert [json.loads(text)["state"] for text in stored] == [{NAME: model_of_a_figure()}]
    assert "live figure" not in warnings


def test_a_page_shows_the_live_figure_and_not_what_stands_in_its_place(build):
    notebook = notebook_of_colab(FORMS["Jupyter's"])
    notebook["cells"][2]["outputs"][0]["data"]["text/html"] = "<p>did not start</p>"
    page, _ = build(notebook)
    assert tool.WIDGET_VIEW in page
    assert "did not start" not in page


@pytest.mark.parametrize(
    "models",
    [
        {},
        {"other": model_of_a_figure()},
        {NAME: model_of_a_figure() | {"state": {}}},
        {NAME: model_of_a_figure() | {"state": {"_esm": "x", "a": float("nan")}}},
    ],
    ids=["none", "another", "without its code", "nan"],
)
def test_the_build_warns_of_a_figure_without_its_state(build, models):
    _, warnings = build(notebook_of_colab(models))
    assert "cell 3 shows a live figure, but the notebook does not hold its state" in warnings
    assert "make notebooks ONLY=index" in warnings


# ---- busy machines


def test_the_kernels_of_the_notebooks_have_threads_that_do_not_spin(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cell = nbformat.v4.new_code_cell("import os; print(os.environ['OMP_WAIT_POLICY'])")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    tool.run(notebook, tmp_path)
    assert cell.outputs[0].text == "passive\n"


def test_a_policy_that_a_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cell = nbformat.v4.new_code_cell("import os; print(os.environ['OMP_WAIT_POLICY'])")
    tool.run(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert cell.outputs[0].text == "active\n"


@pytest.fixture
def policy_in_make(tmp_path):
    """A function that makes a target with a Python that only says what OpenMP's policy is."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "policy=$OMP_WAIT_POLICY"\n')
    python.chmod(0o755)

    def policy(target: str, given: str | None = None) -> set[str]:
        env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        env |= {"OMP_WAIT_POLICY": given} if given else {}
        command = ["make", target, f"BIN={tmp_path}"]
        for done in ("lint", "book", ".venv/installed"):
            command += ["-o", done]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
        return set(re.findall(r"^policy=(.*)$", made.stdout, re.M))

    return policy


@pytest.mark.parametrize("target", ["check", "test", "notebooks"])
def test_make_keeps_waiting_threads_from_spinning(policy_in_make, target):
    assert policy_in_make(target) == {"passive"}


def test_make_keeps_a_policy_that_is_set(policy_in_make):
    assert policy_in_make("check", given="active") == {"active"}


@pytest.mark.parametrize("target", ["bench", "study", "gpu"])
def test_what_measures_speed_runs_under_openmps_own_policy(policy_in_make, target):
    assert policy_in_make(target) == {""}


def test_a_cell_may_take_as_long_in_the_tests_as_when_it_is_stored():
    makefile = (ROOT / "Makefile").read_text()
    assert f"--nbval-cell-timeout={tool.CELL_LIMIT} " in makefile
    assert tool.CELL_LIMIT >= 3600
