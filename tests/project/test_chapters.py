"""The table of contents, the chapters' cards, the teaching plan, the status line and the mark."""

import json
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import chapters
import pictures
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def known():
    return chapters.all_chapters()


def pages_of_the_table_of_contents() -> list[str]:
    return re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())


def devices_of_the_results() -> list[str]:
    records = [json.loads(path.read_text()) for path in (ROOT / "results").rglob("*.json")]
    return [record["device_name"] for record in records]


@pytest.mark.parametrize("page", pages_of_the_table_of_contents())
def test_every_page_of_the_table_of_contents_is_there(page):
    assert (ROOT / f"{page}.md").exists() or (ROOT / f"{page}.ipynb").exists()


def test_every_notebook_is_a_page():
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(pages_of_the_table_of_contents())
    assert len(NOTEBOOKS) >= 2


# ---- the map


def test_every_notebook_is_in_the_map(known):
    in_map = [chapter for part in chapters.map_of_the_book().values() for chapter in part]
    assert {chapter["path"] for chapter in in_map} == set(NOTEBOOKS)
    assert [chapter["number"] for chapter in in_map[: len(known)]] == sorted(known)


def test_a_chapters_number_is_that_of_its_file(known):
    assert all(c["path"].name.startswith(f"{number:02d}_") for number, c in known.items())


def test_every_chapter_has_a_run_time_and_exercises(known):
    assert all(c["seconds"] > 0 for c in known.values())
    assert all(c["exercises"] for c in known.values())


def test_a_chapter_builds_on_earlier_chapters_only(known):
    for chapter in known.values():
        before = [int(number) for number in chapter["before"]]
        assert set(before) <= set(known)
        assert all(number < chapter["number"] for number in before)


def test_the_teaching_plan_has_every_chapter_once_and_in_order(known):
    plan = (ROOT / "book" / "teaching.md").read_text()
    days = re.findall(r"^\d+: ([\d ]+)\|", plan, re.M)
    planned = [int(number) for numbers in days for number in numbers.split()]
    assert [number for number in planned if number in known] == sorted(known)


# ---- the cards


def cards_of_the_book() -> dict[str, ElementTree.Element]:
    """The cards by the address to which each leads."""
    html = chapters.cards(chapters.map_of_the_book(), lambda chapter: chapter["path"].name)
    page = ElementTree.fromstring(f"<div>{html}</div>")
    links = [link for link in page.iter("a") if link.attrib["class"] == "chapter-card"]
    return {link.attrib["href"]: link for link in links}


def test_every_notebook_has_a_card():
    assert set(cards_of_the_book()) == {path.name for path in NOTEBOOKS}


def test_a_card_says_number_question_and_run_time(known):
    found = cards_of_the_book()
    for number, chapter in known.items():
        text = "".join(found[chapter["path"].name].itertext())
        time = chapters.duration(chapter["seconds"])
        assert text == f"Chapter {number} {chapter['question']} runs for {time}"


def test_a_cards_text_is_text():
    path = Path("notebooks/99_less.ipynb")
    chapter = {"number": 99, "question": "Is a < b & c?", "seconds": 1, "path": path}
    link = ElementTree.fromstring(chapters.card(chapter, "99.html")).find("a")
    assert "Is a < b & c?" in "".join(link.itertext())


def test_every_chapter_has_a_picture_of_its_own(known):
    drawn = [pictures.picture(number) for number in known]
    drawn.append(pictures.picture("a page without one"))
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("chapter", pictures.PICTURES)
def test_a_picture_is_small_and_nobody_has_to_hear_it(chapter):
    drawn = pictures.picture(chapter)
    assert len(drawn) < 4000
    assert ElementTree.fromstring(drawn).attrib["aria-hidden"] == "true"


# ---- the mark


def test_the_mark_is_the_one_that_the_code_draws_from_the_trained_model():
    number = re.compile(r"-?\d+(?:\.\d+)?")
    drawn, stored = pictures.mark(), pictures.MARK.read_text(encoding="utf-8")
    assert number.sub("", drawn) == number.sub("", stored)
    # a last digit may depend on the processor
    numbers = [float(n) for n in number.findall(stored)]
    assert [float(n) for n in number.findall(drawn)] == pytest.approx(numbers, abs=0.11)


# ---- the numbers of the start page


def accuracy(condition: str, seed: int) -> float:
    folder = "study" if seed < 5 else "study-again"
    path = ROOT / "results" / folder / f"{condition}-seed{seed}.json"
    return json.loads(path.read_text(encoding="utf-8"))["test_accuracy"]


def test_the_start_page_states_the_studys_difference():
    points = [100 * (accuracy("kat", seed) - accuracy("mlp", seed)) for seed in range(10)]
    mean = statistics.mean(points)
    # Student's t for nine degrees of freedom
    half = 2.262 * statistics.stdev(points) / 10**0.5
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert f"the KAT ended {mean:.1f} points ahead" in text
    assert (mean - half < 0 < mean + half) == ("still contains zero" in text)


# ---- the status


def test_the_status_counts_the_chapters():
    numbered = [path for path in NOTEBOOKS if path.name[0].isdigit()]
    assert f"{len(numbered)} chapters" in chapters.status()


def test_the_status_counts_the_results():
    devices = devices_of_the_results()
    assert f"Of {len(devices)} stored results" in chapters.status()


def test_the_status_says_whether_a_gpu_was_measured():
    only_cpus = all("thread" in device for device in devices_of_the_results())
    assert ("none on a GPU yet" in chapters.status()) == only_cpus


@pytest.fixture
def another_edition(tmp_path, monkeypatch):
    """A released one, with one result of a GPU and two of a CPU."""
    chapters.all_chapters()  # is read before the folder changes, and kept
    (tmp_path / "results").mkdir()
    cpu, gpu = "Some CPU, 2 threads", "NVIDIA H100 80GB HBM3"
    for number, device in enumerate((cpu, gpu, cpu)):
        record = json.dumps({"device_name": device})
        (tmp_path / "results" / f"{number}.json").write_text(record)
    (tmp_path / "CHANGELOG.md").write_text("## 9.9 (2030-01-01)\n")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)


@pytest.mark.usefixtures("another_edition")
def test_the_status_names_the_edition():
    assert "Edition 9.9 (2030-01-01)" in chapters.status()


@pytest.mark.usefixtures("another_edition")
def test_the_status_names_the_gpus():
    expected = "1 were measured on a GPU (NVIDIA H100 80GB HBM3), 2 on a CPU"
    assert expected in chapters.status()
