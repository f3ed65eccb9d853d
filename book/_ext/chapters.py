"""Directives that are written from the notebooks themselves.

No page then repeats by hand what a chapter says about itself.

```{chapters}
```
The map: a card for each chapter with its picture, number, question and run time, by the parts of
_toc.yml.

```{status}
```
The edition, and what has been measured on which devices.

```{plan}
1: 1 2 | before class | homework
```
A teaching plan: a line for each day with its chapters and tasks.

```{needs}
```
Every chapter with the chapters that it builds on.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path

import pictures
import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


# ---- what the notebooks say


@cache
def parts() -> dict[str, list[dict]]:
    """The captions of _toc.yml in order, each with its chapters; other pages are left out."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters_of = {}
    for part in toc["parts"]:
        files = [entry["file"] for entry in part["chapters"]]
        notebooks = [ROOT / f"{file}.ipynb" for file in files if re.match(r"notebooks/\d", file)]
        if notebooks:
            chapters_of[part["caption"]] = [read_chapter(path) for path in notebooks]
    return chapters_of


@cache
def appendices() -> list[dict]:
    """What was split off from chapters: notebooks A1, A2, ..."""
    return [read_chapter(path) for path in sorted((ROOT / "notebooks").glob("A*.ipynb"))]


def read_chapter(path: Path) -> dict:
    """What a notebook says about itself.

    Returns:
        Its path, number (for an appendix a text such as "A1"), question, run time in seconds, on
        which device that was measured, the two-digit numbers of the chapters to read before, and
        its exercises as (number, name).
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    opening = "".join(cells[0]["source"])
    title = re.match(r"# (A?\d+) · (.+)", opening)
    time = re.search(r"Run time: (\d+) s \((.+?)\)", opening)
    before = re.search(r"\*Before this: (.*?) Run time:", opening, re.S)
    if not (title and time and before):
        raise ValueError(
            f"{path.name}: its first cell needs a title '# 7 · Question?' and a line "
            "'*Before this: ... Run time: 9 s (device).*'"
        )
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {
        "path": path,
        "number": int(title[1]) if title[1].isdigit() else title[1],
        "question": title[2],
        "seconds": int(time[1]),
        "device": time[2],
        "before": re.findall(r"\((\d\d)_\w+\.ipynb\)", before[1]),
        "exercises": re.findall(r"^### (A?\d+\.\d+) (.+)$", text, re.M),
    }


def all_chapters() -> dict[int, dict]:
    """The chapters by their numbers."""
    return {chapter["number"]: chapter for chapters in parts().values() for chapter in chapters}


def map_of_the_book() -> dict[str, list[dict]]:
    """The parts, and the appendices behind them if there are any."""
    return parts() | ({"Appendices": appendices()} if appendices() else {})


# ---- Markdown


def link(chapter: dict) -> str:
    """The chapter's number as a link to it, from a page in book/."""
    return f"[{chapter['number']}](../notebooks/{chapter['path'].name})"


def duration(seconds: int) -> str:
    if seconds < 100:
        return f"{seconds}{NO_BREAK_SPACE}s"
    return f"{seconds / 60:.1f}{NO_BREAK_SPACE}min"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(table_line(cells) for cells in [head, ["---"] * len(head), *rows])


def table_line(cells: list[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"


# ---- the directives


class Chapters(SphinxDirective):
    """The map of the book."""

    def run(self):
        here, builder = self.env.docname, self.env.app.builder

        def address(chapter: dict) -> str:
            return builder.get_relative_uri(here, f"notebooks/{chapter['path'].stem}")

        return [nodes.raw("", cards(map_of_the_book(), address), format="html")]


def cards(chapters_of: dict[str, list[dict]], address: Callable[[dict], str]) -> str:
    """The cards of all parts, each part with a heading; every card is one link."""
    return "".join(
        part_heading(caption)
        + f'<ul class="chapter-cards">{"".join(card(c, address(c)) for c in chapters)}</ul>'
        for caption, chapters in chapters_of.items()
    )


def part_heading(caption: str) -> str:
    """A heading with a link to itself, as the theme writes it."""
    anchor = "part-" + re.sub(r"\W+", "-", caption.lower())
    return (
        f'<h3 class="chapter-part" id="{anchor}">{escape(caption)}'
        f'<a class="headerlink" href="#{anchor}" title="Link to this heading">#</a></h3>'
    )


def card(chapter: dict, address: str) -> str:
    number = chapter["number"]
    name = f"Appendix {number}" if isinstance(number, str) else f"Chapter {number}"
    return (
        f'<li><a class="chapter-card" href="{escape(address)}">{pictures.picture(number)}'
        f'<span class="chapter-number">{name}</span> '
        f'<span class="chapter-question">{escape(chapter["question"])}</span> '
        f'<span class="chapter-time">runs for {duration(chapter["seconds"])}</span></a></li>'
    )


def status() -> str:
    """The edition in two sentences: its chapters, and where the stored results were measured."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, released = re.search(r"^## (\S+) \((.+)\)$", changelog, re.M).groups()
    chapters = all_chapters()
    longest = max(chapter["seconds"] for chapter in chapters.values())
    devices = devices_of_results()
    return (
        f"**Status.** Edition {version} ({released}): {len(chapters)} chapters, "
        f"all of which run on two CPU cores, the longest for {duration(longest)}. "
        f"Of {len(devices)} stored results, {where_measured(devices)}.\n"
    )


def devices_of_results() -> list[str]:
    """The name of the device of every stored result."""
    devices = []
    for path in sorted((ROOT / "results").rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and "device_name" in record:
            devices.append(record["device_name"])
    return devices


def where_measured(devices: list[str]) -> str:
    # the name of a processor, other than that of a GPU, gives its threads
    on_gpu = [name for name in devices if "thread" not in name]
    if not on_gpu:
        return (
            "all were measured on a CPU, none on a GPU yet: where a page needs such a number, "
            "it says that it is open"
        )
    names = ", ".join(sorted(set(on_gpu)))
    on_cpu = len(devices) - len(on_gpu)
    return f"{len(on_gpu)} were measured on a GPU ({names}), {on_cpu} on a CPU"


class Status(SphinxDirective):
    """The state of the edition."""

    def run(self):
        return self.parse_text_to_nodes(status())


class Plan(SphinxDirective):
    """A teaching plan, one row for each day, with what the chapters say about themselves."""

    has_content = True

    def run(self):
        rows = [plan_row(line) for line in self.content if line.strip()]
        head = ["day", "chapters", "run for", "exercises", "in class"]
        text = table(head, [row for row in rows if row])
        found = self.parse_text_to_nodes(text)
        for node in found:
            node["classes"].append("prose")
        return found


def plan_row(line: str) -> list[str] | None:
    """The row of a line such as "1: 1 2 | before class | homework"; None if it has no chapter.

    An edition may have fewer chapters than the plan.
    """
    day, numbers, task = re.match(r"(\d+): ([\d ]+)\|(.*)", line).groups()
    known = all_chapters()
    chapters = [known[int(number)] for number in numbers.split() if int(number) in known]
    if not chapters:
        return None
    exercises = [exercise for chapter in chapters for exercise in chapter["exercises"]]
    return [
        day,
        "; ".join(f"{link(chapter)} {chapter['question']}" for chapter in chapters),
        duration(sum(chapter["seconds"] for chapter in chapters)),
        "; ".join(f"{number} {name}" for number, name in exercises),
        task.strip(),
    ]


class Needs(SphinxDirective):
    """Every chapter with the chapters that it builds on, its run time and its exercises."""

    def run(self):
        rows = [needs_row(chapter) for chapter in all_chapters().values()]
        head = ["chapter", "its question", "after", "runs for", "exercises"]
        return self.parse_text_to_nodes(table(head, rows))


def needs_row(chapter: dict) -> list[str]:
    known = all_chapters()
    before = [int(number) for number in chapter["before"]]
    links = ", ".join(link(known[number]) for number in before if number in known)
    return [
        link(chapter),
        chapter["question"],
        links or "none",
        duration(chapter["seconds"]),
        str(len(chapter["exercises"])),
    ]


def setup(app):
    app.add_directive("chapters", Chapters)
    app.add_directive("status", Status)
    app.add_directive("plan", Plan)
    app.add_directive("needs", Needs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
