"""CIFAR-10: the cache against damage, the download against everything that can go wrong, and the real thing's statistics."""

import hashlib
import http.server
import re
import threading

import pytest
import torch
from torch.testing import assert_close

import katlib
from katlib.train import data
from katlib.train.data import MEAN, STD, augment, download, normalize

PAYLOAD = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def server():
    """A server on this machine; `server.cut` = number of bytes after which it hangs up, `server.ranges` = what was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            server.ranges.append(asked)
            start = (
                int(re.match(r"bytes=(\d+)-", asked).group(1)) if asked and server.resumable else 0
            )
            if start >= len(PAYLOAD):
                self.send_error(416)
                return
            body = PAYLOAD[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut] if server.cut else body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cut, server.ranges, server.resumable = 0, [], True
    server.url = f"http://127.0.0.1:{server.server_port}/archive"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_arrives_whole_and_only_once(server, tmp_path):
    path = tmp_path / "archive"
    for _ in range(2):
        download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == PAYLOAD and len(server.ranges) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize("resumable", [True, False])
def test_a_download_that_was_cut_off_leaves_nothing_whole_and_goes_on(server, tmp_path, resumable):
    path = tmp_path / "archive"
    server.cut, server.resumable = 100_000, resumable
    with pytest.raises(OSError):
        download(server.url, path, SHA256, progress=False)
    assert not path.exists()
    assert (tmp_path / "archive.part").stat().st_size == 100_000
    server.cut = 0
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == PAYLOAD and server.ranges[1] == "bytes=100000-"


def test_a_part_that_is_already_complete_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "archive.part").write_bytes(PAYLOAD)
    download(server.url, tmp_path / "archive", SHA256, progress=False)
    assert (tmp_path / "archive").read_bytes() == PAYLOAD


def test_a_file_of_another_sha256_is_removed(server, tmp_path):
    with pytest.raises(OSError, match="another SHA-256"):
        download(
            server.url, tmp_path / "archive", hashlib.sha256(b"another").hexdigest(), progress=False
        )
    assert list(tmp_path.iterdir()) == []


def fake_tensors():
    return {
        name: torch.zeros(shape, dtype=torch.uint8 if "images" in name else torch.int64)
        for name, shape in data.SHAPES.items()
    }


def broken(folder, progress):
    raise OSError("no route to host")


def test_without_network_and_cache_one_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_from_torchvision", broken)
    monkeypatch.setattr(data, "_from_npm", broken)
    with pytest.raises(RuntimeError) as caught:
        katlib.load_cifar10(tmp_path, progress=False)
    message = str(caught.value)
    assert (
        message.count("no route to host") == 2
        and "put cifar-10-python.tar.gz into" in message
        and str(tmp_path) in message
    )


def test_the_second_source_is_taken_when_the_first_fails_and_the_cache_after_that(
    tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(data, "_from_torchvision", broken)
    monkeypatch.setattr(
        data, "_from_npm", lambda folder, progress: calls.append(1) or fake_tensors()
    )
    first = katlib.load_cifar10(tmp_path, progress=False)
    second = katlib.load_cifar10(tmp_path, progress=False)
    assert (
        len(calls) == 1
        and first.sha256 == second.sha256
        and second.train_images.shape == (50_000, 3, 32, 32)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10.safetensors"]


@pytest.mark.parametrize("damage", ["one byte", "cut off", "empty"])
def test_a_damaged_cache_is_noticed_and_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(data, "_from_torchvision", lambda folder, progress: fake_tensors())
    whole = katlib.load_cifar10(tmp_path, progress=False)
    cache = tmp_path / "cifar10.safetensors"
    if damage == "one byte":
        with cache.open("r+b") as file:
            file.seek(90_000_000)
            file.write(b"\x01")
    else:
        with cache.open("r+b") as file:
            file.truncate(50_000_000 if damage == "cut off" else 0)
    with pytest.warns(UserWarning, match="damaged"):
        again = katlib.load_cifar10(tmp_path, progress=False)
    assert again.sha256 == whole.sha256 and (again.train_images == 0).all()


def test_tensors_of_another_shape_never_become_a_cache(tmp_path, monkeypatch):
    short = fake_tensors() | {"train_labels": torch.zeros(49_999, dtype=torch.int64)}
    monkeypatch.setattr(data, "_from_torchvision", lambda folder, progress: short)
    with pytest.raises(ValueError, match="has the shapes"):
        katlib.load_cifar10(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cifar10():
    return katlib.load_cifar10(progress=False)


def test_the_real_images(cifar10):
    """Known of CIFAR-10: classes of equal size, the first labels, the statistics that normalize uses, and one digest of all."""
    assert (
        cifar10.train_labels.bincount().tolist() == [5000] * 10
        and cifar10.test_labels.bincount().tolist() == [1000] * 10
    )
    assert cifar10.train_labels[:5].tolist() == [6, 9, 9, 4, 1] and cifar10.test_labels[
        :5
    ].tolist() == [3, 8, 8, 0, 6]
    pixels = cifar10.train_images.float() / 255
    assert_close(pixels.mean((0, 2, 3)), torch.tensor(MEAN), atol=1e-4, rtol=0)
    assert_close(pixels.std((0, 2, 3)), torch.tensor(STD), atol=1e-4, rtol=0)
    assert cifar10.sha256 == "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
    assert "50,000 training" in repr(cifar10)


def test_normalize():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    expected = torch.stack([(images[:, c] / 255 - MEAN[c]) / STD[c] for c in range(3)], 1)
    assert_close(normalize(images), expected)


def test_augment_shifts_and_mirrors_and_nothing_else():
    image = torch.arange(1.0, 3 * 6 * 6 + 1).view(1, 3, 6, 6)
    generator = torch.Generator().manual_seed(0)
    augmented = augment(image.expand(400, -1, -1, -1), generator, padding=2)
    padded = torch.nn.functional.pad(image[0], (2,) * 4)
    possible = {}
    for dy in range(5):
        for dx in range(5):
            crop = padded[:, dy : dy + 6, dx : dx + 6]
            (
                possible[crop.numpy().tobytes()],
                possible[crop.flip(-1).contiguous().numpy().tobytes()],
            ) = (dy, dx, 0), (dy, dx, 1)
    seen = {
        possible[one.numpy().tobytes()] for one in augmented
    }  # a KeyError would be an image that must not be
    assert len(seen) == 50
    again = augment(image.expand(400, -1, -1, -1), torch.Generator().manual_seed(0), padding=2)
    assert torch.equal(augmented, again)
