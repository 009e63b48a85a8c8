import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.data import (
    DATASETS,
    Augmentation,
    ImageData,
    batches,
    cifar10,
    fashion_mnist,
    imagefolder,
    load_data,
    locations,
    training_batches,
)
from sparrow.quantize.data.batching import augment, steps_per_epoch
from sparrow.quantize.data.locations import Download

COUNT = 6  # images in each of the small CIFAR-10 batches made here


@pytest.fixture(autouse=True)
def small_and_private(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", COUNT)


def cifar_arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    return (
        generator.integers(0, 256, (6, COUNT, 3072), dtype=np.uint8),
        generator.integers(0, 10, (6, COUNT), dtype=np.uint8),
    )


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels, labels in zip(cifar10.BINARY_BATCHES, *cifar_arrays(), strict=True):
        (folder / name).write_bytes(np.concatenate([labels[:, None], pixels], axis=1).tobytes())
    return folder


def write_python(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels, labels in zip(cifar10.PYTHON_BATCHES, *cifar_arrays(), strict=True):
        batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"a batch"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def write_archive(archive: Path, folder: Path, mode: str) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode) as stream:
        stream.add(folder, arcname=folder.name)
    return archive


def assert_is_cifar(data: ImageData) -> None:
    pixels, labels = cifar_arrays()
    np.testing.assert_array_equal(data.train_images.reshape(5, COUNT, 3072), pixels[:5])
    np.testing.assert_array_equal(data.test_images.reshape(COUNT, 3072), pixels[5])
    np.testing.assert_array_equal(data.train_labels, labels[:5].reshape(-1))
    np.testing.assert_array_equal(data.test_labels, labels[5])
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == np.int64
    assert data.image_shape == (3, 32, 32)


# ---- registry


def test_names_are_known_without_heavy_imports():
    code = (
        "import sys; from sparrow.quantize.data import DATASETS; print(*DATASETS); "
        "print(*({'torch', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "digits cifar10 fashion-mnist imagefolder\n\n"


def test_unknown_name_lists_the_nearest_first():
    with pytest.raises(SparrowError, match="did you mean 'cifar10'"):
        load_data("cifar100")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_folder(name, tmp_path):
    with pytest.raises(SparrowError, match="does not exist") as caught:
        load_data(name, tmp_path / "nowhere")
    assert "--data-dir" in caught.value.next_step


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_empty_folder(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SparrowError, match=r"holds no .*") as caught:
        load_data(name, tmp_path / "empty")
    assert caught.value.expected and "--data-dir" in caught.value.next_step


# ---- digits


def test_digits_are_split_by_class_and_always_alike():
    data, again = load_data("digits"), load_data("digits")
    assert data.train_images.shape == (1437, 1, 8, 8) and data.test_images.shape == (360, 1, 8, 8)
    np.testing.assert_array_equal(data.test_images, again.test_images)
    assert np.ptp(np.bincount(data.test_labels)) <= 2
    normalized = data.normalize(data.train_images)
    assert abs(normalized.mean()) < 1e-2 and abs(normalized.std() - 1) < 1e-2


def test_digits_refuse_a_folder(tmp_path):
    with pytest.raises(SparrowError, match="come with scikit-learn"):
        load_data("digits", tmp_path)


# ---- CIFAR-10


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_binary_folder(tmp_path, inner):
    write_binary(tmp_path / "data" / inner)
    assert_is_cifar(load_data("cifar10", tmp_path / "data"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_python_folder(tmp_path, protocol):
    write_python(tmp_path / "data" / "cifar-10-batches-py", protocol)
    assert_is_cifar(load_data("cifar10", tmp_path / "data"))


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tar.xz", "w:xz"), (".tar", "w")])
@pytest.mark.parametrize("write", [write_binary, write_python])
def test_archive_and_its_folder(tmp_path, suffix, mode, write):
    name = "cifar-10-batches-bin" if write is write_binary else "cifar-10-batches-py"
    archive = write_archive(tmp_path / "data" / f"{name}{suffix}", write(tmp_path / name), mode)
    assert_is_cifar(load_data("cifar10", archive))
    assert_is_cifar(load_data("cifar10", archive.parent))


def test_decoded_archive_is_cached_until_it_changes(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "any.tar", write_binary(tmp_path / "cifar"), "w")
    load_data("cifar10", archive)
    read, calls = cifar10.read_archive, []
    monkeypatch.setattr(cifar10, "read_archive", lambda *a, **k: calls.append(a) or read(*a, **k))
    assert_is_cifar(load_data("cifar10", archive))
    assert not calls
    os.utime(archive, ns=(1, 1))
    assert_is_cifar(load_data("cifar10", archive))
    assert len(calls) == 1


def test_damaged_cache_is_decoded_again(tmp_path):
    archive = write_archive(tmp_path / "any.tar", write_binary(tmp_path / "cifar"), "w")
    load_data("cifar10", archive)
    (cached,) = (tmp_path / "cache" / "decoded").glob("*/images.npy")
    cached.write_bytes(cached.read_bytes()[:200])
    assert_is_cifar(load_data("cifar10", archive))


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "file"))
    assert_is_cifar(load_data("cifar10", write_archive(tmp_path / "a.tar", write_binary(tmp_path / "cifar"), "w")))


@pytest.mark.parametrize("write", [write_binary, write_python])
def test_missing_batch_is_named(tmp_path, write):
    folder = write(tmp_path / "data")
    (missing,) = folder.glob("data_batch_3*")
    missing.unlink()
    with pytest.raises(SparrowError, match=f"lacks {missing.name}"):
        load_data("cifar10", folder)


def test_binary_batch_of_wrong_size(tmp_path):
    batch = write_binary(tmp_path / "data") / "data_batch_2.bin"
    batch.write_bytes(batch.read_bytes()[:-3073])
    with pytest.raises(SparrowError, match=r"data_batch_2\.bin in .* has 15,365 bytes") as caught:
        load_data("cifar10", tmp_path / "data")
    assert caught.value.expected == "18,438 bytes"


def test_label_out_of_range(tmp_path):
    batch = write_binary(tmp_path / "data") / "test_batch.bin"
    batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
    with pytest.raises(SparrowError, match=r"labels from \d to 10"):
        load_data("cifar10", tmp_path / "data")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Hostile()), "asks to call posix.mkdir"),
        (pickle.dumps({b"data": Hostile()}), "asks to call posix.mkdir"),
        (b"", "no readable pickle"),
        (b"\x80\x02}", "no readable pickle"),
        (pickle.dumps([1, 2]), "'data' of NoneType"),
        (pickle.dumps({b"data": np.zeros((COUNT, 3071), np.uint8), b"labels": [0] * COUNT}), "3071"),
        (pickle.dumps({b"data": np.zeros((COUNT, 3072), np.float32), b"labels": [0] * COUNT}), "another type"),
        (pickle.dumps({b"data": np.zeros((COUNT, 3072), np.uint8), b"labels": [0]}), "1 labels"),
        (pickle.dumps({b"data": np.zeros((COUNT, 3072), np.uint8), b"labels": ["0"] * COUNT}), "labels"),
    ],
)
def test_bad_pickle_is_refused_and_not_executed(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (write_python(tmp_path / "data") / "data_batch_4").write_bytes(content)
    with pytest.raises(SparrowError, match=message):
        load_data("cifar10", tmp_path / "data")
    assert not Path("executed").exists()


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tar.xz", "w:xz"), (".tar", "w")])
def test_truncated_archive(tmp_path, suffix, mode):
    archive = write_archive(tmp_path / f"a{suffix}", write_binary(tmp_path / "cifar"), mode)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(SparrowError, match=r"cannot be read|lacks"):
        load_data("cifar10", archive)
    assert not (tmp_path / "cache" / "decoded").exists()


@pytest.mark.parametrize("content", [b"", b"neither tar nor anything else" * 100])
def test_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(SparrowError, match="cannot be read"):
        load_data("cifar10", tmp_path / "a.tar.gz")


def test_archive_with_hostile_paths_writes_nothing(tmp_path):
    archive = tmp_path / "inner" / "a.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as stream:
        for name in ("../escaped.bin", "/tmp/../../escaped.bin"):
            member = tarfile.TarInfo(name)
            member.size = 3
            stream.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        stream.addfile(link)
    with pytest.raises(SparrowError, match="lacks data_batch_1"):
        load_data("cifar10", archive)
    assert not (tmp_path / "escaped.bin").exists()


def test_archive_member_that_is_too_large(tmp_path):
    folder = write_binary(tmp_path / "cifar")
    (folder / "test_batch.bin").write_bytes(bytes(100 * 3073))
    with pytest.raises(SparrowError, match=r"test_batch\.bin .* has 307,300 bytes"):
        load_data("cifar10", write_archive(tmp_path / "a.tar", folder, "w"))


# ---- Fashion-MNIST


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path):
    def write(suffix: str = "") -> Path:
        folder = tmp_path / "fashion"
        folder.mkdir(exist_ok=True)
        for name, count in (("train", 5), ("t10k", 2)):
            pixels = np.arange(count * 784, dtype=np.int64).astype(np.uint8).reshape(count, 28, 28)
            write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", pixels)
            write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8))
        return folder

    return write


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(fashion, suffix):
    data = load_data("fashion-mnist", fashion(suffix))
    assert data.train_images.shape == (5, 1, 28, 28) and data.test_images.shape == (2, 1, 28, 28)
    assert data.train_images[0, 0, 0, 5] == 5
    np.testing.assert_array_equal(data.train_labels, range(5))


def test_fashion_mnist_without_a_file(fashion):
    folder = fashion()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SparrowError, match="lacks t10k-labels-idx1-ubyte"):
        load_data("fashion-mnist", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "begins with 00 00 08"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47"),
        (b"\0\0\x08\x03\0\0", "begins with 00 00 08 03"),
        (struct.pack(">HBB3I", 0, 8, 3, 5, 28, 28) + bytes(100), "holds 116 bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "holds 16 bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 5, 4, 4) + bytes(80), r"hold images \(5, 4, 4\)"),
        (struct.pack(">HBB3I", 0, 8, 3, 4, 28, 28) + bytes(4 * 784), r"labels \(5,\)"),
    ],
)
def test_bad_idx(fashion, content, message):
    folder = fashion()
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(SparrowError, match=message):
        load_data("fashion-mnist", folder)


def test_truncated_gzip(fashion):
    path = fashion(".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SparrowError, match="cannot be read"):
        load_data("fashion-mnist", path.parent)


# ---- folders of images


def write_image(path: Path, size: tuple[int, int], colour: tuple[int, int, int] = (200, 100, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_class_folders_with_train_and_val(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label in ("cat", "ant"):
            for number in range(count):
                write_image(tmp_path / split / label / f"{number}.png", (300, 260))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_data("imagefolder", tmp_path)
    assert data.classes == ("ant", "cat")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.shape == (6, 3, 224, 224)
    images = data.train_images[np.array([0, 5])]
    assert images.shape == (2, 3, 224, 224) and images.dtype == np.uint8
    assert np.unique(images[0, 0]).tolist() == [200] and np.unique(images[1, 1]).tolist() == [100]


def test_labels_file_keeps_the_numbers_of_classes(tmp_path):
    for number in range(10):
        write_image(tmp_path / f"{number}.png", (240, 240))
    (tmp_path / "labels.txt").write_text("".join(f"{number}.png {2 * number}\n" for number in range(10)))
    data = load_data("imagefolder", tmp_path)
    assert data.test_labels.tolist() == [0, 10]
    assert data.train_labels.tolist() == [2, 4, 6, 8, 12, 14, 16, 18]
    assert len(data.classes) == 19


@pytest.mark.parametrize("size", [(240, 240), (500, 300), (100, 180), (224, 1000)])
def test_middle_of_the_image_is_kept(tmp_path, size):
    picture = Image.new("L", size, 0)
    picture.paste(255, (size[0] // 2, 0, *size))
    picture.save(tmp_path / "half.png")
    pixels = imagefolder.decode(tmp_path / "half.png")
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, :, :108].max() == 0 and pixels[:, :, 116:].min() == 255


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.png\n", "line 1 of"), ("\n", "lists no image"), ("a.png 1\nmissing.png 2\n", "line 2 of .*missing.png")],
)
def test_bad_labels_file(tmp_path, text, message):
    write_image(tmp_path / "a.png", (240, 240))
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(SparrowError, match=message):
        load_data("imagefolder", tmp_path)


def test_image_that_cannot_be_decoded_is_named(tmp_path):
    write_image(tmp_path / "cat" / "a.jpg", (240, 240))
    path = tmp_path / "cat" / "b.jpg"
    path.write_bytes((tmp_path / "cat" / "a.jpg").read_bytes()[:300])
    data = load_data("imagefolder", tmp_path)
    with pytest.raises(SparrowError, match=r"b\.jpg cannot be decoded"):
        data.train_images[0:1]


def test_image_folder_needs_a_place():
    with pytest.raises(SparrowError, match="no place is known") as caught:
        load_data("imagefolder")
    assert "--data-dir" in caught.value.next_step


# ---- places


def test_last_good_place_is_remembered(tmp_path):
    folder = write_binary(tmp_path / "good")
    load_data("cifar10", folder)
    (tmp_path / "bad").mkdir()
    with pytest.raises(SparrowError):
        load_data("cifar10", tmp_path / "bad")
    assert_is_cifar(load_data("cifar10"))
    saved = json.loads((tmp_path / "cache" / "data-locations.json").read_text())
    assert saved == {"cifar10": str(folder)}


@pytest.mark.parametrize("content", ["no json", "[1]", '{"cifar10": 3}', '{"cifar10": "/nowhere/at/all"}'])
def test_useless_memory_is_ignored(tmp_path, monkeypatch, content):
    monkeypatch.setattr(cifar10, "DOWNLOADS", (Download("file:///nowhere/a.tar.gz", "0"),))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data-locations.json").write_text(content)
    with pytest.raises(SparrowError, match="cannot download"):
        load_data("cifar10")


def test_download_is_checked_and_remembered(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", write_binary(tmp_path / "cifar"), "w:gz")
    md5 = subprocess.run(["md5sum", archive], capture_output=True, text=True, check=True).stdout.split()[0]
    monkeypatch.setattr(cifar10, "DOWNLOADS", (Download(archive.as_uri(), "0" * 32),))
    with pytest.raises(SparrowError, match=f"MD5 checksum {md5}") as caught:
        load_data("cifar10")
    assert caught.value.expected == "0" * 32
    assert not list((tmp_path / "cache" / "downloads" / "cifar10").iterdir())

    monkeypatch.setattr(cifar10, "DOWNLOADS", (Download(archive.as_uri(), md5),))
    assert_is_cifar(load_data("cifar10"))
    archive.unlink()
    (tmp_path / "cache" / "data-locations.json").unlink()
    assert_is_cifar(load_data("cifar10"))


def test_failed_download_gives_the_manual_step(tmp_path, monkeypatch):
    url = (tmp_path / "absent" / "cifar-10-binary.tar.gz").as_uri()
    monkeypatch.setattr(cifar10, "DOWNLOADS", (Download(url, "0"),))
    with pytest.raises(SparrowError, match="cannot download") as caught:
        load_data("cifar10")
    assert url in caught.value.next_step and "--data-dir" in caught.value.next_step
    assert not list((tmp_path / "cache" / "downloads" / "cifar10").iterdir())


@pytest.mark.parametrize("module", [cifar10, fashion_mnist])
def test_published_downloads_are_found_by_the_reader(module):
    names = {file.file_name for file in module.DOWNLOADS}
    expected = {f"{n}.gz" for n in fashion_mnist.FILES} if module is fashion_mnist else set(cifar10.ARCHIVES)
    assert names <= expected and all(len(file.md5) == 32 for file in module.DOWNLOADS)


def test_find_folder_prefers_the_folder_itself(tmp_path):
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "x").touch()
    assert locations.find_folder(tmp_path, "inner", ["x"]) == tmp_path
    (tmp_path / "x").unlink()
    assert locations.find_folder(tmp_path, "inner", ["x"]) == tmp_path / "inner"
    assert locations.find_folder(tmp_path, "inner", ["y"]) is None


# ---- batches


@pytest.fixture
def numbered() -> ImageData:
    """Images whose every pixel is the image's number."""
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1) * np.ones((1, 2, 6, 5), np.uint8)
    labels = np.arange(50, dtype=np.int64)
    return ImageData(
        "numbered", images, labels, images[:7], labels[:7], mean=(0.0, 0.5), std=(1.0, 0.25),
        classes=tuple(map(str, range(50))),
    )  # fmt: skip


def test_batches_keep_order_and_normalize(numbered):
    found = list(batches(numbered, "test", batch_size=4))
    assert [len(labels) for _, labels in found] == [4, 3]
    images = np.concatenate([images for images, _ in found])
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[3, :, 0, 0], [3 / 255, (3 / 255 - 0.5) / 0.25], rtol=1e-6)


def test_training_order_depends_on_seed_and_epoch_only(numbered):
    def order(**place: int) -> list[int]:
        return [int(label) for _, labels in training_batches(numbered, 8, **place) for label in labels]

    first = order(seed=1, epoch=0)
    assert first == order(seed=1, epoch=0)
    assert len(first) == 48 == len(set(first)) == 8 * steps_per_epoch(numbered, 8)
    assert first != order(seed=1, epoch=1) and first != order(seed=2, epoch=0)
    assert order(seed=1, epoch=0, first_step=4) == first[32:]


def test_resumed_epoch_is_augmented_alike():
    data = load_data("digits")
    data = ImageData(**{**vars(data), "augmentation": Augmentation(crop_padding=1, horizontal_flip=True)})
    whole = list(training_batches(data, 128, seed=0, epoch=3))
    rest = list(training_batches(data, 128, seed=0, epoch=3, first_step=5))
    for (images, labels), (again, labels_again) in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)


def test_fewer_images_than_a_batch(numbered):
    assert [len(labels) for _, labels in training_batches(numbered, 512, seed=0, epoch=0)] == [50]


def test_augmentation_crops_and_mirrors():
    images = np.arange(1, 1 + 64 * 16, dtype=np.int64).astype(np.uint8).reshape(64, 1, 4, 4)
    seen = set()
    for image, result in zip(images, augment(images, Augmentation(1, True), np.random.default_rng(0)), strict=True):
        padded = np.pad(image[0], 1)
        candidates = {
            (top, left, mirrored): (crop[:, ::-1] if mirrored else crop)
            for top in range(3)
            for left in range(3)
            for crop in [padded[top : top + 4, left : left + 4]]
            for mirrored in (False, True)
        }
        matches = [place for place, crop in candidates.items() if np.array_equal(crop, result[0])]
        assert matches
        seen.update(matches)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == {0, 1, 2}
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_no_augmentation_returns_the_images():
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    np.testing.assert_array_equal(augment(images, Augmentation(), np.random.default_rng(0)), images)


def test_unknown_or_empty_split(numbered):
    with pytest.raises(SparrowError, match="did you mean 'train'"):
        next(batches(numbered, "trian"))
    empty = ImageData(**{**vars(numbered), "test_labels": np.zeros(0, np.int64)})
    with pytest.raises(SparrowError, match="numbered has no test images"):
        next(batches(empty, "test"))
