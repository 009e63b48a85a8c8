"""What images, arrays and raw numbers become for a network, and those that are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparrow.deploy.cli.samples import Preprocessing, PreprocessingOptions, read_image, read_samples
from sparrow.deploy.frontend.network import TensorInfo
from sparrow.kernels.errors import SparrowError

IMAGE = (TensorInfo("image", (1, 3, 8, 10), "float32"),)
PAIR = (TensorInfo("a", (1, 4), "float32"), TensorInfo("b", (1, 2), "int64"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (20 + index, 16), (10 * index, 100, 200)).save(folder / f"{index}.png")
    return folder


def test_images_are_fitted_normalized_and_spread_over_the_folder(photos):
    samples = read_samples(photos, IMAGE, Preprocessing((10, 20, 30), (2, 2, 2)), 3)
    assert [sample["image"].shape for sample in samples] == [(1, 3, 8, 10)] * 3
    reds = [float(sample["image"][0, 0, 0, 0]) for sample in samples]
    assert reds == [(0 - 10) / 2, (20 - 10) / 2, (40 - 10) / 2]
    assert samples[0]["image"][0, 2].max() == (200 - 30) / 2


def test_channel_order_is_that_of_the_network(photos):
    sample = read_samples(photos, IMAGE, Preprocessing((1, 2, 3), (1, 1, 1), "bgr"), 1)[0]["image"][0]
    assert [float(channel[0, 0]) for channel in sample] == [200 - 1, 100 - 2, 0 - 3]


def test_what_a_user_does_not_say_the_network_says():
    said = {"sparrow.pixel_mean": "[77.8515]", "sparrow.pixel_deviation": "[95.88]"}
    assert PreprocessingOptions().complete({}) == Preprocessing()
    assert PreprocessingOptions().complete(said) == Preprocessing((77.8515,), (95.88,))
    typed = PreprocessingOptions(deviation=(1.0,), order="bgr")
    assert typed.complete(said) == Preprocessing((77.8515,), (1.0,), "bgr")


@pytest.mark.parametrize(
    "text", ["", "1", "[]", "[1, 2]", '["one"]', "[NaN]", "[1e999]", "{}", "[" * 100_000, f"[{10**400}]", "[0]"]
)
def test_what_a_network_says_is_not_trusted(text):
    with pytest.raises(SparrowError, match=r"says sparrow\.pixel_deviation .*") as caught:
        PreprocessingOptions().complete({"sparrow.pixel_deviation": text})
    assert caught.value.next_step == "give --pixel-deviation"
    assert PreprocessingOptions(deviation=(2.0,)).complete({"sparrow.pixel_deviation": text}).deviation == (2.0,)


def test_an_image_keeps_its_middle(tmp_path):
    picture = np.zeros((4, 12, 3), np.uint8)
    picture[:, 4:8] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 4, 4) == 255).all()


def test_arrays_for_one_input_and_for_several(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(480, dtype=np.float64).reshape(2, 3, 8, 10))
    samples = read_samples(tmp_path / "one.npy", IMAGE, Preprocessing(), 10)
    assert [(sample["image"].shape, sample["image"].dtype) for sample in samples] == [((1, 3, 8, 10), np.float32)] * 2
    np.savez(tmp_path / "two.npz", a=np.ones((3, 4)), b=np.ones((3, 2), np.int64))
    assert read_samples(tmp_path / "two.npz", PAIR, Preprocessing(), 2)[1]["b"].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "content", "inputs", "message"),
    [
        ("missing.npy", None, IMAGE, "does not exist"),
        ("text.npy", b"hello", IMAGE, "is not a NumPy file"),
        ("short.npy", np.ones((2, 3, 8, 9)), IMAGE, "has the shape"),
        ("nan.npy", np.full((1, 3, 8, 10), np.nan), IMAGE, "no finite numbers"),
        ("one.npz", {"a": np.ones((1, 4))}, PAIR, "has nothing for the input b"),
        ("uneven.npz", {"a": np.ones((1, 4)), "b": np.ones((2, 2))}, PAIR, "differ in length"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, name, content, inputs, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(SparrowError, match=message):
        read_samples(path, inputs, Preprocessing(), 4)


def test_folders_that_cannot_be_used(tmp_path, photos):
    with pytest.raises(SparrowError, match="the network takes a float32"):
        read_samples(photos, PAIR, Preprocessing(), 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SparrowError, match="holds no image"):
        read_samples(tmp_path / "empty", IMAGE, Preprocessing(), 4)
    (photos / "0.png").write_bytes(b"no image")
    with pytest.raises(SparrowError, match=r"0\.png cannot be decoded"):
        read_samples(photos, IMAGE, Preprocessing(), 5)


def test_an_image_alone_and_a_gray_network(photos):
    gray = (TensorInfo("image", (1, 1, 8, 10), "float32"),)
    sample = read_samples(photos / "1.png", gray, Preprocessing((100.0,), (2.0,)))[0]["image"]
    luma = round(0.299 * 10 + 0.587 * 100 + 0.114 * 200)
    assert sample.shape == (1, 1, 8, 10) and sample[0, 0, 4, 4] == pytest.approx((luma - 100) / 2, abs=0.5)
    with pytest.raises(SparrowError, match="takes gray images"):
        read_samples(photos / "1.png", gray, Preprocessing())


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    picture = Image.new("RGB", (8, 4))
    picture.putpixel((7, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right to be upright
    picture.save(tmp_path / "photo.png", exif=exif)
    assert read_image(tmp_path / "photo.png", 8, 4)[7, 3].tolist() == [255, 255, 255]


def test_raw_numbers_hold_all_inputs_of_a_sample_in_order(tmp_path):
    first, second = np.arange(4, dtype=np.float32), np.array([7, -9], np.int64)
    (tmp_path / "two.raw").write_bytes((first.tobytes() + second.tobytes()) * 2)
    samples = read_samples(tmp_path / "two.raw", PAIR, Preprocessing())
    assert len(samples) == 2
    assert samples[1]["a"].tolist() == [[0, 1, 2, 3]] and samples[1]["b"].tolist() == [[7, -9]]
    (tmp_path / "two.raw").write_bytes(first.tobytes())
    with pytest.raises(SparrowError, match=r"has 16 bytes\n  expected: 32 a sample: a float32\[1, 4\], b int64"):
        read_samples(tmp_path / "two.raw", PAIR, Preprocessing())


@pytest.mark.parametrize(
    "name", ["it's a \"cat\".png", "two\nlines.png", "Kätzchen 猫.png", "$HOME `id` *.png", "-x.png"]
)
def test_names_that_a_shell_would_take_apart(tmp_path, name):
    Image.new("RGB", (10, 8), (1, 2, 3)).save(tmp_path / name)
    assert read_samples(tmp_path / name, IMAGE, Preprocessing((0.0,), (1.0,)))[0]["image"][0, :, 0, 0].tolist() == [
        1, 2, 3]  # fmt: skip
