"""Files are whole or absent, and a lock has one holder."""

import json
import subprocess
import sys
import threading
import time

import pytest

from katlib.files import lock, write_json, write_text, write_whole


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with write_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_failure_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), write_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_at_once_each_write_a_whole_one(tmp_path):
    path, texts = tmp_path / "a.txt", [str(i) * 10_000 for i in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, 2.5]}
    assert text.count("\n") == 1


def test_text_is_utf_8_in_any_locale(tmp_path):
    write_text(tmp_path / "a.txt", "2 × 3 − 1")
    assert (tmp_path / "a.txt").read_bytes().decode() == "2 × 3 − 1"


def test_a_lock_has_one_holder_among_threads(tmp_path):
    order = []

    def hold(name):
        with lock(tmp_path / "a"):
            order.append(name)
            time.sleep(0.02)
            order.append(name)

    threads = [threading.Thread(target=hold, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2]


@pytest.mark.slow
def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    program = (
        "import sys, time; from katlib.files import lock\n"
        f"lock({str(tmp_path / 'a')!r}).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    with lock(tmp_path / "a").acquire(timeout=5):
        pass
