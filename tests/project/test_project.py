"""The repository as a whole: pins, notebooks, the built book."""

import builtins
import dis
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HTML = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import notebooks as tool


def pins(lines):
    """{name: version} of the lines `name==version`; of a version that depends on Python's, the newer Python's."""
    found = (
        re.match(r'([\w.-]+)==([\w.]+)(?: ; python_version >= "3.11")?$', line.strip())
        for line in lines
    )
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_environment_yml_pins_the_same_versions_as_constraints_txt():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = pins(
        next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    )
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert listed == {name: constraints[name] for name in listed}
    project = (ROOT / "pyproject.toml").read_text()
    needed = {name.lower() for name in re.findall(r'^    "([\w-]+)[><=]', project, re.M)}
    assert set(listed) == needed and len(needed) >= 14


def test_every_constraint_can_hold_beside_the_ranges():
    from packaging.requirements import Requirement

    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    project = (ROOT / "pyproject.toml").read_text()
    for requirement in map(Requirement, re.findall(r'^    "([\w-]+[><=][^"]*)"', project, re.M)):
        assert requirement.specifier.contains(constraints[requirement.name.lower()]), requirement


def test_the_version_is_the_same_wherever_it_is_written():
    import katlib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(
        r"^## (\S+) \((not released yet|\d{4}-\d\d-\d\d)\)$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.M,
    )
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert {str(citation["version"]), newest[1], project[1]} == {katlib.__version__}
    assert (
        str(citation.get("date-released", "not released yet")) == newest[2]
        and citation["authors"]
        and citation["license"] == "MIT"
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem
)
def test_the_workflows_run_what_exists(path):
    workflow = yaml.safe_load(path.read_text())
    assert (
        workflow["permissions"]["contents"] == "read" and workflow[True]
    )  # YAML 1.1 reads the key `on` as true
    lines = [
        line
        for job in workflow["jobs"].values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)
    for made in re.findall(r"\bmake (\w+)", "\n".join(lines)):
        assert made in targets
    for script in re.findall(r"(\.ci/\w+)", "\n".join(lines)):
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"
    if path.stem == "weekly":
        python, torch_ = (
            re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1],
            re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1],
        )
        ends = {
            entry["end"]: entry["python"]
            for entry in workflow["jobs"]["ends"]["strategy"]["matrix"]["include"]
        }
        assert ends["lowest"] == python and ends["newest"] > python and torch_ == "2.6"


PROGRAMS = pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("katlib", "benchmarks", "book/_ext", "examples", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)


@PROGRAMS
def test_every_name_that_a_program_reads_is_there(path):
    """What runs seldom, as a benchmark does, would miss an import when it is needed."""

    def parts(code):
        yield code
        for constant in code.co_consts:
            if isinstance(constant, type(code)):
                yield from parts(constant)

    steps = [
        step
        for part in parts(compile(path.read_text(), str(path), "exec"))
        for step in dis.get_instructions(part)
    ]
    read, made = (
        {step.argval for step in steps if step.opname in names}
        for names in (("LOAD_GLOBAL", "LOAD_NAME"), ("STORE_GLOBAL", "STORE_NAME"))
    )
    assert read - made - set(dir(builtins)) <= {"__annotations__", "__file__"}


@PROGRAMS
def test_the_lowest_python_can_read_it(path):
    import ast

    assert ast.parse(path.read_text(), feature_version=(3, 10)).body is not None
    with pytest.raises(SyntaxError):  # 3.11's syntax is told
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass", feature_version=(3, 10))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "katlib").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_package_uses_no_private_name_of_torch_but_those_it_can_do_without(path):
    import ast

    kinds = ast.Attribute, ast.Import, ast.ImportFrom
    used = re.findall(
        r"\btorch[\w.]*\._(?!_)\w+",
        "\n".join(
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, kinds)
        ),
    )
    allowed = {
        "operator.py": {"torch._C"},  # those of operator.PRIVATE, see test_operator.py
        "cost.py": {"torch._subclasses", "torch.utils._python_dispatch", "torch.utils._pytree"},
    }  # by which PyTorch's documentation calls them
    assert set(used) == allowed.get(path.name, set())


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def test_every_page_is_in_the_table_of_contents_and_every_notebook_is_a_page():
    toc = (ROOT / "_toc.yml").read_text()
    pages = re.findall(r"(?:root|file): (\S+)", toc)
    assert all(
        (ROOT / f"{page}.md").exists() or (ROOT / f"{page}.ipynb").exists() for page in pages
    )
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(pages) and len(NOTEBOOKS) >= 2


def test_every_chapter_is_in_the_map_and_in_the_teaching_plan():
    import chapters

    known = chapters.all_chapters()
    assert {c["path"] for c in known.values()} == set(NOTEBOOKS)
    assert all(
        c["path"].name.startswith(f"{number:02d}_") and c["seconds"] > 0 and c["exercises"]
        for number, c in known.items()
    )
    planned = re.findall(r"^\d+: ([\d ]+)\|", (ROOT / "book" / "teaching.md").read_text(), re.M)
    assert [int(n) for numbers in planned for n in numbers.split() if int(n) in known] == sorted(
        known
    )  # each once, in order
    for c in known.values():
        assert all(int(n) in known and int(n) < c["number"] for n in c["before"])


def test_the_status_counts_what_is_there(tmp_path, monkeypatch):
    import chapters

    told = chapters.status()
    devices = [
        json.loads(path.read_text())["device_name"] for path in (ROOT / "results").rglob("*.json")
    ]
    assert f"{len(NOTEBOOKS)} chapters" in told and f"Of {len(devices)} stored results" in told
    assert ("none on a GPU yet" in told) == all("threads" in name for name in devices)
    (tmp_path / "results").mkdir()
    for i, name in enumerate(
        ("Some CPU, 2 threads", "NVIDIA H100 80GB HBM3", "Some CPU, 2 threads")
    ):
        (tmp_path / "results" / f"{i}.json").write_text(json.dumps({"device_name": name}))
    (tmp_path / "CHANGELOG.md").write_text("## 9.9 (2030-01-01)\n")
    chapters.all_chapters()  # read before the folder changes
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    assert (
        "Edition 9.9 (2030-01-01)" in chapters.status()
        and "1 were measured on a GPU (NVIDIA H100 80GB HBM3), 2 on a CPU" in chapters.status()
    )


def test_the_first_cell_installs_katlib_from_the_address_in_the_configuration(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "".join(code[0]["source"]) == tool.setup_cell(tool.address())


def test_notebooks_are_stored_executed_in_order_and_without_debris(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            assert not re.search(r"/(home|root|tmp|Users)/|\b\d\d:\d\d:\d\d\b", json.dumps(output))


def test_notebooks_open_with_a_question_and_close_with_what_was_learned(notebook):
    markdown = [
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    ]
    assert "**The question.**" in markdown[0] and re.search(
        r"Run time: \d+ s \(.+\)\.\*", markdown[0]
    )
    assert "## What we learned" in markdown[-1] and "### Further reading" in markdown[-1]


def test_every_exercise_has_a_check_and_a_folded_solution(notebook):
    cells = notebook["cells"]
    exercises = [
        i
        for i, cell in enumerate(cells)
        if re.search(r"^### \d+\.\d+ ", "".join(cell["source"]), re.M)
    ]
    assert exercises
    for i in exercises:
        check, solution = cells[i + 1], cells[i + 2]
        assert "def check_" in "".join(check["source"])
        assert "Right" not in "".join(
            line for output in check["outputs"] for line in output.get("text", [])
        )  # the answer is left to the reader
        assert "hide-input" in solution["metadata"]["tags"] and "assert check_" in "".join(
            solution["source"]
        )
        assert "".join(solution["source"]).startswith("# @title Solution")


def test_the_copy_for_class_has_every_exercise_and_no_solution(notebook):
    copy = tool.without_solutions(notebook)
    before, after = (["".join(cell["source"]) for cell in n["cells"]] for n in (notebook, copy))
    solutions = [source for source in before if source.startswith("# @title Solution")]
    assert (
        solutions
        and len(after) == len(before) - len(solutions)
        and not any("@title Solution" in source for source in after)
    )
    checks = [re.findall(r"def check_\d+_\d+", "\n".join(sources)) for sources in (before, after)]
    assert checks[0] == checks[1] and len(checks[0]) >= len(solutions) - 1
    outputs = json.dumps([cell.get("outputs") for cell in copy["cells"][-4:]])
    assert "Right" not in outputs
    folded = {
        "cells": [
            {
                "cell_type": "markdown",
                "metadata": {},
                "source": ["Ask.\n", "```{dropdown} A solution\n", "secret\n", "```\n", "Go on.\n"],
            }
        ]
    }
    assert "".join(tool.without_solutions(folded)["cells"][0]["source"]) == "Ask.\nGo on.\n"
    assert "](../" not in "".join(after)  # it goes to class alone


def test_long_drawings_are_folded_so_that_the_page_can_be_read(notebook):
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "plot.figure(" in source and source.count("\n") > 14:
            assert "hide-input" in cell["metadata"]["tags"], source[:200]


def test_a_notebook_that_uses_a_gpu_says_which_it_found_and_what_it_does_there(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not any("torch.cuda.is_available()" in "".join(cell["source"]) for cell in code):
        return
    says = code[1]  # the imports, behind the installation
    assert "say_device(" in "".join(says["source"]) and "nbval-check-output" not in says[
        "metadata"
    ].get("tags", [])
    assert len(says["outputs"]) == 1 and re.fullmatch(
        r"(No GPU, \d+ CPU threads?: .+\. With a GPU|NVIDIA .+): .+\.\n",
        "".join(says["outputs"][0]["text"]),
    )
    assert len("".join(says["outputs"][0]["text"])) <= 98  # one line of the page


def test_the_device_is_said_in_one_line(monkeypatch, capsys):
    import torch

    from katlib.book.device import say_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        say_device("all images", "2,500 images")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    say_device("all images", "2,500 images")
    assert capsys.readouterr().out.splitlines() == [
        "No GPU, 1 CPU thread: 2,500 images. With a GPU: all images.",
        "No GPU, 2 CPU threads: 2,500 images. With a GPU: all images.",
        "NVIDIA H100 80GB HBM3: all images.",
    ]


def test_key_numbers_are_compared(notebook):
    assert (
        sum("nbval-check-output" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
        >= 3
    )


def test_the_address_is_written_everywhere_and_taken_back(tmp_path, monkeypatch):
    """`make colab` in a copy of the repository."""
    (tmp_path / "notebooks").mkdir()
    for name in ("_config.yml", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    copies = [tmp_path / "notebooks" / path.name for path in NOTEBOOKS]
    for path, copy in zip(NOTEBOOKS, copies):
        copy.write_text(path.read_text())
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "NOTEBOOKS", copies)
    before = tool.address()
    tool.write_address("https://github.com/someone/kat")
    assert tool.address() == "https://github.com/someone/kat"
    assert (
        yaml.safe_load((tmp_path / "_config.yml").read_text())["launch_buttons"]["colab_url"]
        == "https://colab.research.google.com"
    )
    assert (tmp_path / "README.md").read_text().count(
        "colab.research.google.com/github/someone/kat/blob/main/notebooks/"
    ) == len(copies)
    assert all(
        'REPOSITORY = \\"https://github.com/someone/kat\\"' in copy.read_text() for copy in copies
    )
    tool.write_address(before)
    assert all(copy.read_text() == path.read_text() for path, copy in zip(NOTEBOOKS, copies))
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_no_module_is_long_and_the_package_can_be_read_in_an_evening():
    """The part to read; beside it how CUDA sources are compiled, launched and measured, the live figures, the ways in and out of other people's
    programs and what runs cost, and what the book's pages and the command line need, none of which is needed to read on."""
    lines = {
        path: len(path.read_text().splitlines())
        for path in (ROOT / "katlib").rglob("*")
        if path.suffix in (".py", ".cpp", ".cu", ".js")
    }
    assert max(lines.values()) <= 250, lines
    of = {
        part: sum(n for path, n in lines.items() if part in path.parts)
        for part in ("katlib", "cuda", "widgets")
    }
    field, cost, pages = (
        sum(lines[ROOT / "katlib" / f"{name}.py"] for name in names)
        for names in (("pretrained", "timm", "convert"), ("cost",), ("cli", "tables", "inside"))
    )
    assert (
        field <= 550
        and cost <= 215
        and pages <= 450
        and of["cuda"] <= 900
        and of["widgets"] <= 1100
    ), (field, cost, pages, of)
    assert of["katlib"] - of["cuda"] - of["widgets"] - field - cost - pages <= 2485, of


def test_figures_ask_for_a_caption_and_an_alt_text_and_are_the_same_every_time():
    from katlib.book import plot

    drawings = [plot.functions([0.0, 1.0], {"line": [0.0, 1.0]}) for _ in range(2)]
    assert plot.svg(drawings[0]) == plot.svg(drawings[1])
    shown = plot.figure(drawings[0], "a <line>", 'a "line"')._repr_html_()
    assert "a &lt;line&gt;" in shown and 'alt="a &quot;line&quot;"' in shown
    for caption, alt in (("", "x"), ("x", " ")):
        with pytest.raises(ValueError, match="caption"):
            plot.figure(drawings[0], caption, alt)


def test_the_ticks_of_an_axis_say_where_they_are():
    from katlib.book import plot

    runs = [
        {
            "mlp": "grkan",
            "epochs": [
                {"epoch": i, "test_accuracy": accuracy} for i, accuracy in enumerate((0.34, 0.52))
            ],
        }
    ]
    fig = plot.learning_curves(runs)
    plot.svg(fig)
    ticks = fig.axes[0].get_yticks()
    assert len(ticks) > 3 and [
        float(label.get_text().rstrip("%")) / 100 for label in fig.axes[0].get_yticklabels()
    ] == pytest.approx(ticks)
    fig = plot.functions([0.2, 100.0], {"speed": [15.0, 70.0]}, xscale="log", yscale="log")
    plot.svg(fig)
    axis = fig.axes[0].yaxis
    shown = [
        label.get_text()
        for label in axis.get_ticklabels(minor=True) + axis.get_ticklabels()
        if label.get_text()
    ]
    assert {"20", "30"} <= set(shown) and all(re.fullmatch(r"[\d.]+", text) for text in shown)


def test_the_readme_picture_is_the_one_that_the_code_draws_from_the_stored_run():
    import matplotlib

    pinned = pins((ROOT / "constraints.txt").read_text().splitlines())["matplotlib"]
    if matplotlib.__version__ != pinned:
        pytest.skip(
            f"drawn by matplotlib {pinned}; {matplotlib.__version__} may lay it out otherwise"
        )
    from katlib.book import plot
    from katlib.book.results import stored_runs

    run = max(
        stored_runs(preset="cifar-nano", mlp="grkan", seed=0), key=lambda run: len(run["epochs"])
    )
    drawn = plot.svg(plot.activations(run["activations"])).decode()
    stored = (ROOT / "book" / "_static" / "learned_activations.svg").read_text()
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("", drawn) == number.sub(
        "", stored
    )  # the same strokes; their last digits may depend on the processor
    assert [float(n) for n in number.findall(drawn)] == pytest.approx(
        [float(n) for n in number.findall(stored)], abs=0.01
    )


class Page(HTMLParser):
    """What a page loads, links to, and defines."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.images = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids.add(a.get("id"))
        if tag in ("script", "img", "iframe", "source") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("rel") in (
            "stylesheet",
            "preload",
            "preconnect",
            "icon",
            "modulepreload",
        ):
            self.loads.append(a["href"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "img":
            self.images.append(a)


@pytest.fixture(scope="module")
def pages():
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built; `make test` builds it first")
    paths = [
        HTML / "book" / "intro.html",
        HTML / "book" / "notation.html",
        HTML / "book" / "references.html",
    ]
    return {
        path: Page(path.read_text())
        for path in paths + [HTML / "notebooks" / f"{path.stem}.html" for path in NOTEBOOKS]
    }


def test_the_built_book_loads_nothing_from_elsewhere(pages):
    for path, page in pages.items():
        assert page.loads
        for source in page.loads:
            assert not re.match(r"(https?:)?//", source), f"{path.name} loads {source}"
            if not source.startswith("data:"):
                assert (path.parent / source.split("?")[0].split("#")[0]).exists(), (
                    f"{path.name} loads {source}, which is not there"
                )
    assert any("mathjax" in source for page in pages.values() for source in page.loads)


def test_links_within_the_book_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|#|//", link):
                continue
            target, _, anchor = link.partition("#")
            assert (path.parent / target).exists(), f"{path.name} links to {link}"


def test_every_figure_of_the_book_has_a_text_alternative(pages):
    figures = [
        image
        for page in pages.values()
        for image in page.images
        if image.get("src", "").startswith("data:image/svg")
    ]
    assert len(figures) >= 4 and all(len(image.get("alt") or "") > 20 for image in figures)


def test_citations_are_resolved(pages):
    for path, page in pages.items():
        assert "[?]" not in path.read_text() and "{cite" not in path.read_text(), path.name
