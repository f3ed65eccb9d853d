"""Works on all notebooks at once: runs them and stores their outputs, or writes into them.

python book/_ext/notebooks.py execute [01 ...]      `make notebooks`
python book/_ext/notebooks.py picture               `make picture`
python book/_ext/notebooks.py colab                 `make colab`; needs nothing but Python and git
python book/_ext/notebooks.py student               `make student`; the same
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def setup_cell(repository: str, branch: str) -> str:
    """The first code cell of every notebook; `repository` is a git address, or empty."""
    return f'''# Installs katlib where it is missing, as in Colab; elsewhere this does nothing.
import importlib.util
import subprocess
import sys

REPOSITORY, BRANCH = "{repository}", "{branch}"
if importlib.util.find_spec("katlib") is None:
    assert REPOSITORY, (
        'katlib is not installed: run `pip install -e ".[notebooks]"` in the book\\'s folder, '
        "then restart the kernel"
    )
    clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", BRANCH]
    subprocess.run([*clone, REPOSITORY, "kat-book"], check=True)
    pip_install = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip_install, "-e", "kat-book[notebooks]"], check=True)
    sys.path.insert(0, "kat-book")'''


# What keeps the threads of OpenMP from spinning while they wait, which makes everything twenty to
# fifty times slower where other programs run too. It is read when a process loads torch.
PASSIVE = ("OMP_WAIT_POLICY", "passive")

# seconds that a cell may take: generous, because other programs may be running
CELL_LIMIT = 3600

# the name that Colab gives to the cell of its button
COLAB_BUTTON = "view-in-github"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def store(path: Path, notebook: dict) -> None:
    """Writes a notebook as Jupyter does. katlib.files may not be installed."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def widget_models(notebook: Mapping) -> dict[str, dict]:
    """The models of a notebook's widgets by their names.

    Jupyter stores them under "state". Colab stores them without it; where a repair has added an
    empty "state", they still are beside it.
    """
    stored = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {})
    beside = {
        name: model
        for name, model in stored.items()
        if isinstance(model, Mapping) and "model_name" in model
    }
    return {**beside, **stored.get("state", {})}


# ---- execute


def execute(numbers: list[str]) -> None:
    """Runs notebooks from their own folder and stores their outputs.

    The opening of each is told how long it ran on which device.

    Args:
        numbers: beginnings of file names; all notebooks if there are none.
    """
    import nbformat
    import torch

    from katlib.files import write_text
    from katlib.provenance import device_name

    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for path in NOTEBOOKS:
        if numbers and not path.name.startswith(tuple(numbers)):
            continue
        notebook = nbformat.read(path, 4)
        seconds = run(notebook, path.parent)
        remove_debris(notebook)
        write_run_time(notebook, seconds, device)
        text = name_widgets(nbformat.writes(notebook, 4), widget_models(notebook))
        refuse_paths_of_this_machine(path.name, text)
        write_text(path, text + "\n")
        print(f"{path.name}: {seconds:.0f} s", flush=True)


def run(notebook, folder: Path) -> float:
    """Runs a notebook in place; returns the seconds that it took."""
    from nbclient import NotebookClient

    # the states of an earlier run, which would stay if this one shows no figure
    notebook.metadata.pop("widgets", None)
    # for the kernel, which inherits it
    os.environ.setdefault(*PASSIVE)
    started = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=CELL_LIMIT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return time.perf_counter() - started


def remove_debris(notebook) -> None:
    """Removes what differs from run to run, or comes from Colab, and says nothing to the reader."""
    # Colab's button, which it puts before the first cell of a notebook that it saves to GitHub
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("id") != COLAB_BUTTON]
    for cell in notebook.cells:
        for key in ("execution", "executionInfo", "colab", "colab_type", "id", "outputId"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    # the states of the live figures, which the built page mounts
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if widgets:
        notebook.metadata["widgets"] = widgets


def is_progress_bar(output) -> bool:
    """Progress bars write to stderr, and return to the beginning of their line.

    Anything else on stderr would be a warning, which has to be seen and mended.
    """
    return output.output_type == "stream" and output.name == "stderr" and "\r" in output.text


def write_run_time(notebook, seconds: float, device: str) -> None:
    opening = notebook.cells[0]
    run_time = f"Run time: {seconds:.0f} s ({device}).*"
    opening.source = re.sub(r"Run time: [^*]*\*", run_time, opening.source)


def name_widgets(text: str, models: Mapping[str, dict]) -> str:
    """The notebook's text with its widgets numbered in their order.

    ipywidgets draws their names at random. With numbers, the same run gives the same file.
    """
    for number, name in enumerate(sorted(models, key=text.index)):
        text = text.replace(name, f"{number:032x}")
    return text


def refuse_paths_of_this_machine(name: str, text: str) -> None:
    for place in (str(ROOT), str(Path.home())):
        if place in text:
            sys.exit(f"{name}: an output shows {place}, a path of this machine")


# ---- picture


def picture() -> None:
    """Draws the README's picture from the longest stored run of the KAT."""
    from katlib.book import plot
    from katlib.book.results import stored_runs

    runs = stored_runs(preset="cifar-nano", mlp="grkan", seed=0)
    longest = max(runs, key=lambda run: len(run["epochs"]))
    plot.picture(ROOT / "book" / "_static" / "learned_activations.svg", longest)


# ---- student


def student() -> None:
    """Writes the notebooks without their solutions to build/student."""
    folder = ROOT / "build" / "student"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for path in NOTEBOOKS:
        store(folder / path.name, without_solutions(read(path)))
    print(f"{len(NOTEBOOKS)} notebooks without solutions: {folder.relative_to(ROOT)}")


def without_solutions(notebook: dict) -> dict:
    """A notebook for class.

    It has no solutions of exercises, no links to pages that do not come with it, and from the first
    exercise on no outputs.
    """
    cells = []
    exercises_have_begun = False
    for cell in notebook["cells"]:
        if "".join(cell["source"]).startswith("# @title Solution"):
            continue
        if cell["cell_type"] == "markdown":
            cell = text_for_class(cell)
        if re.search(r"^### \d+\.\d+ ", "".join(cell["source"]), re.M):
            exercises_have_begun = True
        if exercises_have_begun and cell["cell_type"] == "code":
            cell = cell | {"outputs": [], "execution_count": None}
        cells.append(cell)
    return notebook | {"cells": cells}


def text_for_class(cell: dict) -> dict:
    """A cell of text without solutions in words, which are folded on the page, and links."""
    folded_solution = r"^(`{3,}|:{3,})\{dropdown\} [^\n]*[Ss]olution.*?^\1$\n?"
    link_to_the_book = r"\[([^\]]+)\]\(\.\./book/[^)]*\)"
    text = re.sub(folded_solution, "", "".join(cell["source"]), flags=re.M | re.S)
    text = re.sub(link_to_the_book, r"\1", text)
    return cell | {"source": text.splitlines(keepends=True)}


# ---- colab


def address() -> tuple[str, str]:
    """The repository's address in `_config.yml`, empty if there is none, and its branch."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    return re.search(r'^repository:\n  url: "(.*)"\n  branch: "(.*)"$', config, re.M).groups()


def colab() -> None:
    """Writes the remote `origin` and the present branch into everything that holds them."""
    remote = output_of_git("remote", "get-url", "origin")
    url = address_on_github(remote)
    if not url:
        sys.exit(
            "Colab opens notebooks from GitHub, and the remote `origin` is not there "
            f"({without_user(remote) or 'there is none'}): "
            "git remote add origin https://github.com/YOU/REPOSITORY"
        )
    branch = output_of_git("branch", "--show-current")
    if not re.fullmatch(r"[\w./-]+", branch):
        sys.exit(
            f"Colab opens notebooks from a branch of plain letters and digits, not from "
            f"{branch!r}: git switch main"
            if branch
            else "Colab opens notebooks from a branch, and none is checked out: git switch main"
        )
    write_address(url, branch)
    print(f"the book's address is {url}, branch {branch}; commit the change and push it")


def output_of_git(*arguments: str) -> str:
    """What git prints; empty if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()


# github.com as git writes it: https://, ssh:// or git://, with or without a user and a port, and
# user@host:path. Over port 443, SSH goes to ssh.github.com.
GITHUB = re.compile(
    r"(?:(?:https?|ssh|git)://)?(?:[^@/\s]+@)?(?:www\.|ssh\.)?github\.com(?::\d+(?=/))?[:/]/*"
    r"([\w.-]+/[\w.-]+?)(?:\.git)?/*",
    re.I,
)


def address_on_github(remote: str) -> str:
    """The public address of a remote; empty if it is not on GitHub."""
    match = GITHUB.fullmatch(remote)
    return f"https://github.com/{match[1]}" if match else ""


def without_user(remote: str) -> str:
    """The remote without the user's name and password, which no terminal has to show."""
    return re.sub(r"(?<=://)[^@/]+@", "", remote)


def write_address(url: str, branch: str = "main") -> None:
    """Writes one address (or none, if empty) and its branch into every place that holds them."""
    write_address_into_configuration(url, branch)
    for path in NOTEBOOKS:
        write_setup_cell(path, url, branch)
    write_links_into_readme(url, branch)


def write_address_into_configuration(url: str, branch: str) -> None:
    """Puts the address, the branch and the buttons that need them into `_config.yml`."""
    path = ROOT / "_config.yml"
    text = path.read_text(encoding="utf-8")
    lines = f'repository:\n  url: "{url}"\n  branch: "{branch}"\n'
    text = re.sub(r"^repository:\n  url: .*\n  branch: .*\n", lines, text, flags=re.M)
    text = re.sub(r"^  (colab_url: .*|thebe: .*)\n", "", text, flags=re.M)
    buttons = "launch_buttons:\n  thebe: false\n"
    if url:
        buttons += '  colab_url: "https://colab.research.google.com"\n'
    text = text.replace("launch_buttons:\n", buttons)
    path.write_text(text, encoding="utf-8")


def write_setup_cell(path: Path, url: str, branch: str) -> None:
    """Replaces the notebook's first code cell."""
    notebook = read(path)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"] = setup_cell(url, branch).splitlines(keepends=True)
    store(path, notebook)


def write_links_into_readme(url: str, branch: str) -> None:
    """Puts a link that opens it in Colab for each notebook, or none without an address."""
    path = ROOT / "README.md"
    repository = url.removeprefix("https://github.com/")
    folder = f"https://colab.research.google.com/github/{repository}/blob/{branch}/notebooks"
    links = "".join(f"- [{p.stem}]({folder}/{p.name})\n" for p in NOTEBOOKS) if url else ""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?<=<!-- colab -->\n).*?(?=<!-- /colab -->)", links, text, flags=re.S)
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> None:
    command, *rest = arguments or ["help"]
    if command == "execute":
        execute(rest)
    elif command == "picture":
        picture()
    elif command == "colab":
        colab()
    elif command == "student":
        student()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
