"""Images of one's own: what tensors and folders must be like, and training on them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import katlib
from katlib.train import ImageData, images, load_image_folder, start, train
from katlib.train.__main__ import main
from katlib.train.checkpoint import load_state
from katlib.train.data import normalize
from katlib.train.recipe import Config

SMALL = Config(batch_size=16, lr=3e-3).replace(patch_size=8, embed_dim=16, depth=2, num_heads=2)

COLOURS = {"blue": (30, 40, 200), "green": (20, 180, 30), "red": (220, 30, 20)}


def tensors(classes: int = 3, channels: int = 1, size: int = 24) -> dict:
    """The tensors of 30 training and 12 test images."""
    generator = torch.Generator().manual_seed(3)
    shape = (42, channels, size, size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.arange(42) % classes
    return {
        "train_images": pixels[:30],
        "train_labels": labels[:30],
        "test_images": pixels[30:],
        "test_labels": labels[30:],
    }


def train_small(data: ImageData | None, config: Config | str = SMALL, **options) -> dict:
    options = {"epochs": 1, "progress": False, "device": "cpu"} | options
    return train(config, data=data, **options)


# ---- tensors


def test_mean_and_std_are_those_of_the_training_pixels():
    data = ImageData(**tensors(channels=3))
    x = normalize(data.train_images, data.mean, data.std)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_a_channel_without_a_picture_becomes_zero():
    given = tensors(channels=3)
    given["train_images"][:, 2] = 7
    data = ImageData(**given)
    x = normalize(data.train_images, data.mean, data.std)
    assert x[:, 2].abs().max().item() < 1e-5


def test_classes_without_names_are_numbers():
    data = ImageData(**tensors(classes=5))
    assert data.classes == ("0", "1", "2", "3", "4")
    assert data.sizes == {"img_size": 24, "in_chans": 1, "num_classes": 5}


def test_numpy_arrays_and_other_whole_numbers_are_taken():
    arrays = {name: value.numpy() for name, value in tensors().items()}
    arrays["train_labels"] = arrays["train_labels"].astype(np.uint8)
    data = ImageData(**arrays)
    assert data.train_labels.dtype == torch.int64
    assert data.sha256 == ImageData(**tensors()).sha256


def test_other_pixels_have_another_sha256():
    other = tensors()
    other["test_images"] = other["test_images"].clone()
    other["test_images"][0, 0, 0, 0] ^= 1
    assert ImageData(**other).sha256 != ImageData(**tensors()).sha256


PIXELS = tensors()["train_images"]
LABELS = tensors()["train_labels"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(train_images=PIXELS / 255), r"train_images are torch\.float32; .*255 \* images"),
        (dict(train_images=PIXELS.int()), r"train_images are torch\.int32; needed is torch\.uint8"),
        (dict(train_images=PIXELS[:, 0]), r"images\.unsqueeze\(1\)"),
        (dict(train_images=PIXELS.permute(0, 2, 3, 1)), r"images\.permute\(0, 3, 1, 2\)"),
        (
            dict(train_images=PIXELS[..., :20]),
            "train_images are 24 x 20 pixels; needed are squares",
        ),
        (dict(train_images=PIXELS[0, 0]), r"train_images have the shape \(24, 24\)"),
        (dict(test_images=PIXELS[:0], test_labels=LABELS[:0]), "there is no image"),
        (dict(test_images=PIXELS[:12, :, :8, :8]), r"\(1, 24, 24\), the test images \(1, 8, 8\)"),
        (dict(train_images="cats"), "train_images cannot be made a tensor"),
        (
            dict(train_images=torch.zeros_like(PIXELS)),
            "all training images are of the same one colour",
        ),
        (dict(train_labels=LABELS.float()), r"train_labels are torch\.float32; .*labels\.long\(\)"),
        (dict(train_labels=LABELS[:5]), r"train_labels have the shape \(5,\); needed is \(30,\)"),
        (dict(train_labels=torch.eye(3)[LABELS]), r"labels\.argmax\(1\)"),
        (dict(train_labels=LABELS - 1), r"train_labels\[0\] is -1; .*allowed are 0 to 1"),
        (dict(test_labels=torch.full((12,), 7)), r"test_labels\[0\] is 7; for 3 classes"),
        (dict(train_labels=LABELS + 10**12), "the largest of 30 training labels is 1000000000002"),
        (dict(classes=["a", "b"]), r"train_labels\[2\] is 2; for 2 classes allowed are 0 to 1"),
        (dict(classes=["a", "b", "a"]), "has a name twice: a"),
        (dict(classes="abc"), "needed is a list of names"),
        (dict(classes=[1, 2, 3]), "needed is a list of names"),
        (dict(train_labels=0 * LABELS, test_labels=0 * LABELS[:12]), "two or more are needed"),
        (dict(mean=[0.5, 0.5], std=[0.2]), "mean has 2 numbers; the images 1 channels"),
        (dict(mean=[0.5], std=[0.0]), "a standard deviation is more than 0"),
        (dict(mean=[math.nan], std=[0.2]), "mean=nan; allowed are numbers"),
    ],
)
def test_tensors_that_cannot_be_trained_on_are_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        ImageData(**tensors() | changes)
    assert "\n" not in str(caught.value)


def test_a_class_without_a_training_image_is_named():
    data = ImageData(**tensors(), classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"1 of 4 classes have no training image \(d\)"):
        train_small(data)


def test_a_limit_may_leave_a_class_without_an_image():
    assert train_small(ImageData(**tensors()), limit=2)["config"]["train_images"] == 2


# ---- folders


def write_images(folder: Path, classes: dict, count: int, size=(20, 26)) -> Path:
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, colour).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def divided(tmp_path):
    """A folder with train and test."""
    write_images(tmp_path / "train", COLOURS, 5)
    write_images(tmp_path / "test", COLOURS, 2)
    return tmp_path


def load(folder: Path, **options) -> ImageData:
    return load_image_folder(folder, **{"img_size": 16, "progress": False} | options)


def test_a_folder_with_train_and_test(divided):
    data = load(divided)
    assert data.classes == ("blue", "green", "red")
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.test_images.shape == (6, 3, 16, 16)
    assert tuple(data.test_images[-1, :, 3, 7].tolist()) == COLOURS["red"]


def test_test_images_may_lie_in_val(divided):
    (divided / "test").rename(divided / "val")
    assert len(load(divided).test_images) == 6


def test_one_folder_is_divided_class_by_class(tmp_path):
    data = load(write_images(tmp_path / "all", COLOURS, 5), test_fraction=0.4)
    assert torch.bincount(data.train_labels).tolist() == [3, 3, 3]
    assert torch.bincount(data.test_labels).tolist() == [2, 2, 2]


def test_the_seed_divides_one_folder(tmp_path):
    for label, name in enumerate(COLOURS):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("RGB", (16, 16), (index, label, 0)).save(tmp_path / name / f"{index}.png")
    first, again, other = (load(tmp_path, seed=seed).sha256 for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_hidden_files_and_folders_are_no_images(divided):
    (divided / "train" / ".ipynb_checkpoints").mkdir()
    (divided / "train" / "red" / "._0.png").write_bytes(b"what macOS leaves in archives")
    (divided / "train" / "red" / "notes.txt").write_text("not an image")
    assert len(load(divided).train_images) == 15


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    ending = "tif" if mode == "CMYK" else "png"
    image = Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode)
    image.save(tmp_path / f"white.{ending}")
    pixels = images.read_image(tmp_path / f"white.{ending}", 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.unique().tolist() == [255]


def test_the_square_in_the_middle_is_kept(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert images.read_image(tmp_path / "wide.png", 10).unique().tolist() == [200]


def remove_class(folder: Path) -> None:
    for path in (folder / "train" / "red").iterdir():
        path.unlink()
    (folder / "train" / "red").rmdir()


def empty_class(folder: Path) -> None:
    (folder / "train" / "violet").mkdir()


def break_image(folder: Path) -> None:
    path = folder / "train" / "red" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


def write_16_bits(folder: Path) -> None:
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(folder / "test" / "red" / "0.png")


def remove_tests(folder: Path) -> None:
    (folder / "test").rename(folder / "tests")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (remove_class, "test has classes that .*train has not: red"),
        (empty_class, r"1 classes in .*train have no image \(violet\)"),
        (break_image, r"3\.png is no image that can be read"),
        (write_16_bits, r"0\.png is no image that can be read: .*more than 8 bits"),
        (remove_tests, "has the folder train, and beside it neither test nor val"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_one_sentence(divided, spoil, words):
    spoil(divided)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        load(divided)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(img_size=0), "img_size=0; allowed are whole numbers, 1 or more"),
        (dict(test_fraction=1.5), "test_fraction=1.5; allowed are numbers, 0 to 1"),
        (dict(max_bytes=1000), "21 images of 16 x 16 pixels need .* GB of memory"),
        (dict(img_size=100_000), r"need 630\.0 GB of memory; allowed are 8\.0 GB"),
    ],
)
def test_impossible_options_of_a_folder_are_one_sentence(divided, options, words):
    with pytest.raises(ValueError, match=words):
        load(divided, **options)


@pytest.mark.parametrize("name, words", [("missing", "is not a folder"), ("", "no subfolders")])
def test_a_folder_without_classes_is_said(tmp_path, name, words):
    with pytest.raises(FileNotFoundError, match=words):
        load(tmp_path / name)


def test_a_class_of_one_image_cannot_be_divided(tmp_path):
    with pytest.raises(ValueError, match="the class blue has one image; two are needed"):
        load(write_images(tmp_path, COLOURS, 1))


# ---- training


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """The data, record and folder of a run on grey images of three named classes."""
    folder = tmp_path_factory.mktemp("own")
    data = ImageData(**tensors(), classes=["a", "b", "c"])
    recipe = dict(rand_augment=1, mixup=0.4, ema=0.9)
    record = train_small(data, out=folder, epochs=2, **recipe)
    return data, record, folder


def test_a_record_says_what_the_images_are_like(own_run):
    data, record, _ = own_run
    assert record["images"] == {
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": ["a", "b", "c"],
    }
    assert record["data_sha256"] == data.sha256


def test_a_model_of_own_images_is_loaded_with_what_they_are_like(own_run):
    data, _, folder = own_run
    cfg = katlib.load_pretrained(folder / "checkpoint.safetensors").pretrained_cfg
    assert cfg["classes"] == ["a", "b", "c"]
    assert cfg["input_size"] == (1, 24, 24)
    assert (cfg["mean"], cfg["std"]) == (data.mean, data.std)


def test_a_loaded_model_gives_the_accuracy_of_the_record(own_run):
    data, record, folder = own_run
    model = katlib.load_pretrained(folder / "checkpoint.safetensors")
    with torch.no_grad():
        logits = model(normalize(data.test_images, data.mean, data.std))
    accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
    assert accuracy == pytest.approx(record["test_accuracy"])


def test_a_run_does_not_go_on_with_other_images(own_run):
    _, _, folder = own_run
    other = tensors()
    other["train_images"] = 255 - other["train_images"]
    data = ImageData(**other, classes=["a", "b", "c"])
    recipe = dict(rand_augment=1, mixup=0.4, ema=0.9)
    with pytest.raises(ValueError, match=r"belongs to another run: images was .*; data_sha256 was"):
        train_small(data, out=folder, epochs=2, resume=True, **recipe)


def test_shifts_go_up_to_the_size_of_the_images():
    data = ImageData(**tensors(size=8))
    with pytest.raises(ValueError, match="cutout=9; allowed are whole numbers, 0 to 8"):
        train_small(data, cutout=9)


def test_a_patch_size_is_for_the_size_of_the_data():
    data = ImageData(**tensors(size=15))
    with pytest.raises(ValueError, match="patch_size=8 does not divide img_size=15"):
        train_small(data)
    assert train_small(data, patch_size=5)["config"]["patch_size"] == 5


def test_randaugment_is_for_colours_or_grey():
    data = ImageData(**tensors(channels=4))
    with pytest.raises(ValueError, match="RandAugment is for images of 1 or 3 channels"):
        train_small(data, rand_augment=1)


# ---- weights to start from


def first_weights(path: Path | str, data: ImageData) -> start.FirstWeights:
    return start.read_first_weights(path, data.sizes, data.classes)


def test_training_starts_from_the_weights_of_a_file(own_run):
    data, record, folder = own_run
    path = folder / "checkpoint.safetensors"
    # without a step that moves anything
    again = train_small(data, init_from=path, lr=0.0)
    assert again["test_accuracy"] == record["test_accuracy"]
    assert again["epochs"][0]["test_loss"] == pytest.approx(record["epochs"][-1]["test_loss"])


def test_a_record_says_which_weights_it_started_from(own_run):
    data, _, folder = own_run
    path = folder / "checkpoint.safetensors"
    start_of_run = train_small(data, init_from=path)["init_from"]
    assert start_of_run["name"] == "checkpoint.safetensors"
    assert len(start_of_run["sha256"]) == 64


def test_a_released_model_is_named_in_the_record():
    weights = first_weights("kat-cifar10", ImageData(**tensors(channels=3, size=32)))
    assert weights.description == {"name": "kat-cifar10"}


@pytest.mark.parametrize(
    "classes, kept",
    [(["a", "b", "c"], True), (["c", "b", "a"], False), (["a", "b", "c", "d"], False)],
)
def test_other_classes_get_a_new_head(own_run, classes, kept):
    _, _, folder = own_run
    data = ImageData(**tensors(len(classes)), classes=classes)
    weights = first_weights(folder / "checkpoint.safetensors", data)
    assert ("head.weight" in weights.tensors) == kept
    assert weights.architecture.num_classes == len(classes)
    config = start.choose_config(SMALL, None, {}, data.sizes, weights)
    model = start.new_model(config, 0, torch.device("cpu"), weights)
    assert model.head.out_features == len(classes)


def test_other_sizes_of_images_are_trained_from_given_weights():
    data = ImageData(**tensors(classes=4, channels=3, size=48))
    record = train_small(data, "cifar-nano", init_from="kat-cifar10", drop_path=0.1, limit=16)
    assert record["config"]["patch_size"] == 4
    assert record["config"]["drop_path"] == 0.1
    assert record["images"]["classes"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "changes, channels, words",
    [
        (dict(), 1, "kat-cifar10 is for images of 3 channels; these have 1"),
        (dict(depth=3), 3, "depth=3 was asked for, .* are of a model with depth=4"),
        (dict(mlp="mlp"), 3, "mlp='mlp' was asked for, .* a model with mlp='grkan'"),
    ],
)
def test_weights_of_another_model_are_one_sentence(changes, channels, words):
    data = ImageData(**tensors(channels=channels))
    with pytest.raises(ValueError, match=words):
        train_small(data, init_from="kat-cifar10", **changes)


def test_frozen_functions_stay_frozen_from_given_weights():
    data = ImageData(**tensors(channels=3))
    weights = first_weights("kat-cifar10", data)
    config = start.choose_config("cifar-nano", None, {"learned": False}, data.sizes, weights)
    model = start.new_model(config, 0, torch.device("cpu"), weights)
    assert not model.blocks[0].mlp.act2.weight_numerator.requires_grad


# ---- the command line


def test_a_folder_is_trained_on_by_the_command_line(divided, tmp_path, capsys):
    flags = "--img-size 16 --patch-size 8 --preset cifar-pico --epochs 1 --device cpu"
    main(["--images", str(divided), "--out", str(tmp_path / "run"), *flags.split()])
    printed = capsys.readouterr().out
    assert "ImageData(15 training and 6 test images of 3 x 16 x 16, 3 classes" in printed
    run = load_state(tmp_path / "run" / "checkpoint.safetensors")["run"]
    assert run["images"]["classes"] == ["blue", "green", "red"]


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--img-size 16", "--img-size needs --images"),
        ("--images flowers", "--images needs --img-size"),
        ("--images missing --img-size 16", "missing is not a folder"),
    ],
)
def test_flags_for_images_belong_together(flags, words, tmp_path):
    with pytest.raises(SystemExit, match=words):
        main([*flags.split(), "--out", str(tmp_path)])


def test_data_can_be_changed_like_any_dataclass():
    data = ImageData(**tensors())
    part = replace(data, train_images=data.train_images[:9], train_labels=data.train_labels[:9])
    assert (part.mean, part.std, part.sha256) == (data.mean, data.std, data.sha256)
