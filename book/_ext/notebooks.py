"""Works on all notebooks at once: runs them and stores their outputs, or writes the repository's address into them.

python book/_ext/notebooks.py execute [01 ...]      `make notebooks`
python book/_ext/notebooks.py picture               `make picture`
python book/_ext/notebooks.py colab                 `make colab`; needs nothing but Python and git
python book/_ext/notebooks.py student               `make student`; the same
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def setup_cell(repository: str) -> str:
    """The first code cell of every notebook. `repository` is an address that git can clone, or empty."""
    return f'''# Installs katlib where it is missing, as in Colab; elsewhere this does nothing.
import importlib.util
import subprocess
import sys
REPOSITORY = "{repository}"
if importlib.util.find_spec("katlib") is None:
    assert REPOSITORY, "katlib is not installed: run `pip install -e .` in the book's folder, then restart the kernel"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, "kat-book"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", "kat-book"], check=True)
    sys.path.insert(0, "kat-book")'''


def address() -> str:
    """The repository's address in `_config.yml`."""
    return re.search(
        r'^repository:\n  url: "(.*)"$', (ROOT / "_config.yml").read_text(), re.M
    ).group(1)


def store(path: Path, notebook: dict) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def name_widgets(text: str, widgets: dict | None) -> str:
    """The notebook's text with its widgets numbered in their order, where ipywidgets draws their names at random: the same run, the same file."""
    states = widgets["application/vnd.jupyter.widget-state+json"]["state"] if widgets else {}
    for number, name in enumerate(sorted(states, key=text.index)):
        text = text.replace(name, f"{number:032x}")
    return text


def execute(numbers: list[str]) -> None:
    """Runs the notebooks (those whose names begin with one of `numbers`) from their own folder; stores their outputs, and in the opening of
    each how long it ran on what."""
    import nbformat
    import torch
    from nbclient import NotebookClient

    from katlib.provenance import device_name

    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for path in NOTEBOOKS:
        if numbers and not path.name.startswith(tuple(numbers)):
            continue
        notebook = nbformat.read(path, 4)
        started = time.perf_counter()
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.metadata.pop("execution", None)
                # progress bars write to stderr; what is left there otherwise would be a warning, and warnings are to be mended
                cell.outputs = [
                    o
                    for o in cell.outputs
                    if not (o.output_type == "stream" and o.name == "stderr" and "\r" in o.text)
                ]
        seconds = time.perf_counter() - started
        opening = notebook.cells[0]
        opening.source = re.sub(
            r"Run time: [^*]*\*", f"Run time: {seconds:.0f} s ({device}).*", opening.source
        )
        widgets = notebook.metadata.get(
            "widgets"
        )  # the state of live figures, which the built page mounts
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        } | ({"widgets": widgets} if widgets else {})
        text = name_widgets(nbformat.writes(notebook, 4), widgets)
        for place in (str(ROOT), str(Path.home())):
            if place in text:
                sys.exit(f"{path.name}: an output shows {place}, a path of this machine")
        path.write_text(text + "\n")
        print(f"{path.name}: {seconds:.0f} s", flush=True)


def picture() -> None:
    """Draws the README's picture from the longest stored run of the KAT."""
    from katlib.book import plot
    from katlib.book.results import stored_runs

    plot.picture(
        ROOT / "book" / "_static" / "learned_activations.svg",
        max(
            stored_runs(preset="cifar-nano", mlp="grkan", seed=0),
            key=lambda run: len(run["epochs"]),
        ),
    )


def without_solutions(notebook: dict) -> dict:
    """A notebook for class: without the solutions of its exercises, without links to pages that do not come with it, and with the outputs of
    nothing after the first exercise."""
    cells, exercises = [], False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if source.startswith("# @title Solution"):
            continue
        if cell["cell_type"] == "markdown":  # a solution in words, folded on the page
            source = re.sub(
                r"^(`{3,}|:{3,})\{dropdown\} [^\n]*[Ss]olution.*?^\1$\n?",
                "",
                source,
                flags=re.M | re.S,
            )
            source = re.sub(r"\[([^\]]+)\]\(\.\./book/[^)]*\)", r"\1", source)
            cell = cell | {"source": source.splitlines(keepends=True)}
        exercises |= bool(re.search(r"^### \d+\.\d+ ", source, re.M))
        if exercises and cell["cell_type"] == "code":
            cell = cell | {"outputs": [], "execution_count": None}
        cells.append(cell)
    return notebook | {"cells": cells}


def student() -> None:
    """Writes the notebooks without their solutions to build/student."""
    folder = ROOT / "build" / "student"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for path in NOTEBOOKS:
        store(folder / path.name, without_solutions(json.loads(path.read_text())))
    print(f"{len(NOTEBOOKS)} notebooks without solutions: {folder.relative_to(ROOT)}")


def colab() -> None:
    """Puts the address of the remote `origin` into `_config.yml`, into the notebooks' first cells and into the README."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "remote", "get-url", "origin"], capture_output=True, text=True
    ).stdout.strip()
    match = re.fullmatch(
        r"(?:https://github\.com/|git@github\.com:)([\w.-]+/[\w.-]+?)(?:\.git)?/?", found
    )
    if not match:
        sys.exit(
            f"Colab opens notebooks from GitHub, and the remote `origin` is not there ({found or 'there is none'}): "
            "git remote add origin https://github.com/YOU/REPOSITORY"
        )
    name = match.group(1)
    write_address(f"https://github.com/{name}")
    print(f"the book's address is https://github.com/{name}; commit the change")


def write_address(url: str) -> None:
    """Writes one address (or none, if empty) into every place that holds it."""
    config = ROOT / "_config.yml"
    text = re.sub(r'(?<=^repository:\n  url: ")[^"]*', url, config.read_text(), flags=re.M)
    text = re.sub(r"^  (colab_url: .*|thebe: .*)\n", "", text, flags=re.M)
    text = text.replace(
        "launch_buttons:\n",
        "launch_buttons:\n  thebe: false\n"
        + ('  colab_url: "https://colab.research.google.com"\n' if url else ""),
    )
    config.write_text(text)
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        first["source"] = setup_cell(url).splitlines(keepends=True)
        store(path, notebook)
    readme = ROOT / "README.md"
    name = url.removeprefix("https://github.com/")
    links = (
        "".join(
            f"- [{p.stem}](https://colab.research.google.com/github/{name}/blob/main/notebooks/{p.name})\n"
            for p in NOTEBOOKS
        )
        if url
        else ""
    )
    text = re.sub(
        r"(?<=<!-- colab -->\n).*?(?=<!-- /colab -->)", links, readme.read_text(), flags=re.S
    )
    readme.write_text(text)


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or ["help"]
    commands = {
        "execute": lambda: execute(rest),
        "picture": picture,
        "colab": colab,
        "student": student,
    }
    if command not in commands:
        sys.exit(__doc__)
    commands[command]()
