"""Directives that are written from the notebooks themselves, so that no page repeats by hand what a chapter says of itself:

```{chapters}                   the map: each chapter's question and run time, by the parts of _toc.yml
```{status}                     the edition, and what has been measured on what
```{plan}                       a teaching plan; a line "1: 1 2 | before class | homework" for a day and its chapters
"""

import json
import re
from functools import cache
from pathlib import Path

import yaml
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


@cache
def parts() -> dict[str, list[dict]]:
    """{caption: chapters} of _toc.yml, in order; what is not a notebook is left out."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = {
        part["caption"]: [
            chapter(ROOT / f"{entry['file']}.ipynb")
            for entry in part["chapters"]
            if entry["file"].startswith("notebooks/")
        ]
        for part in toc["parts"]
    }
    return {caption: chapters for caption, chapters in found.items() if chapters}


def chapter(path: Path) -> dict:
    """What a notebook's opening says: number, question, run time in seconds and on what, which chapters come before; and its exercises."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    opening = "".join(cells[0]["source"])
    title = re.match(r"# (\d+) · (.+)", opening)
    time = re.search(r"Run time: (\d+) s \((.+?)\)", opening)
    before = re.search(r"\*Before this: (.*?) Run time:", opening, re.S)
    if not (title and time and before):
        raise ValueError(
            f"{path.name}: its first cell needs a title '# 7 · Question?' and a line '*Before this: ... Run time: 9 s (device).*'"
        )
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {
        "path": path,
        "number": int(title[1]),
        "question": title[2],
        "seconds": int(time[1]),
        "device": time[2],
        "before": re.findall(r"\((\d\d)_\w+\.ipynb\)", before[1]),
        "exercises": re.findall(r"^### (\d+\.\d+) (.+)$", text, re.M),
    }


def all_chapters() -> dict[int, dict]:
    return {c["number"]: c for chapters in parts().values() for c in chapters}


def link(c: dict, text: str = "") -> str:
    return f"[{text or c['number']}](../notebooks/{c['path'].name})"


def duration(seconds: int) -> str:
    return (
        f"{seconds}\N{NO-BREAK SPACE}s"
        if seconds < 100
        else f"{seconds / 60:.1f}\N{NO-BREAK SPACE}min"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in [head, ["---"] * len(head), *rows]
        )
        + "\n"
    )


class Chapters(SphinxDirective):
    def run(self):
        rows = []
        for caption, chapters in parts().items():
            rows.append(["", f"**{caption}**", ""])
            rows += [[link(c), c["question"], duration(c["seconds"])] for c in chapters]
        return self.parse_text_to_nodes(table(["chapter", "its question", "runs for"], rows))


def status() -> str:
    """The edition in two sentences: its chapters, and how many stored results were measured on a processor and on a GPU."""
    version, released = re.search(
        r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    ).groups()
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "results").rglob("*.json"))
    ]
    devices = [
        record["device_name"]
        for record in records
        if isinstance(record, dict) and "device_name" in record
    ]
    gpu = sorted(
        {name for name in devices if "threads" not in name}
    )  # a processor's name says its threads
    on_gpu = sum("threads" not in name for name in devices)
    chapters, longest = all_chapters(), max(all_chapters().values(), key=lambda c: c["seconds"])
    measured = (
        f"{on_gpu} were measured on a GPU ({', '.join(gpu)}), {len(devices) - on_gpu} on a CPU"
        if on_gpu
        else "all were measured on a CPU, none on a GPU yet: where a page needs such a number, it says that it is open"
    )
    return (
        f"**Status.** Edition {version} ({released}): {len(chapters)} chapters, all of which run on two CPU cores, the longest for {duration(longest['seconds'])}. "
        f"Of {len(devices)} stored results, {measured}.\n"
    )


class Status(SphinxDirective):
    def run(self):
        return self.parse_text_to_nodes(status())


class Plan(SphinxDirective):
    """One table a day would be long; one row a day, with what the chapters say of themselves."""

    has_content = True

    def run(self):
        known, rows = all_chapters(), []
        for line in filter(str.strip, self.content):
            day, numbers, task = re.match(r"(\d+): ([\d ]+)\|(.*)", line).groups()
            chosen = [
                known[n] for n in map(int, numbers.split()) if n in known
            ]  # an edition may have fewer chapters than the plan
            if chosen:
                rows.append(
                    [
                        day,
                        " <br> ".join(f"{link(c)} {c['question']}" for c in chosen),
                        duration(sum(c["seconds"] for c in chosen)),
                        " <br> ".join(
                            f"{number} {name}" for c in chosen for number, name in c["exercises"]
                        ),
                        task.strip(),
                    ]
                )
        found = self.parse_text_to_nodes(
            table(["day", "chapters", "run for", "exercises", "in class"], rows).replace(
                " <br> ", "; "
            )
        )
        for node in found:
            node["classes"].append("prose")
        return found


class Needs(SphinxDirective):
    """Every chapter with the chapters that it builds on, its run time and its exercises."""

    def run(self):
        known = all_chapters()
        rows = [
            [
                link(c),
                c["question"],
                ", ".join(link(known[int(n)]) for n in c["before"] if int(n) in known) or "none",
                duration(c["seconds"]),
                str(len(c["exercises"])),
            ]
            for c in known.values()
        ]
        return self.parse_text_to_nodes(
            table(["chapter", "its question", "after", "runs for", "exercises"], rows)
        )


def setup(app):
    for name, directive in (
        ("chapters", Chapters),
        ("status", Status),
        ("plan", Plan),
        ("needs", Needs),
    ):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
