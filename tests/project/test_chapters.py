"""The table of contents, the map of the chapters, the teaching plan and the status line."""

import json
import re
from pathlib import Path

import chapters
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


# ---- the status


def test_the_status_counts_the_chapters():
    numbered = [path for path in NOTEBOOKS if path.name[0].isdigit()]
    assert f"{len(numbered)} chapters" in chapters.status()


def test_the_status_counts_the_results():
    devices = devices_of_the_results()
    assert f"Of {len(devices)} stored results" in chapters.status()


def test_the_status_says_whether_a_gpu_was_measured():
    only_cpus = all("threads" in device for device in devices_of_the_results())
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
