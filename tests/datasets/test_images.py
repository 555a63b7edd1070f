import sys

import numpy as np
import pytest
from PIL import Image

from bilevel.datasets import extract_patches, load_photograph, packages, read_image, to_gray
from tests.datasets.needs import needs

SHAPES = {
    "barbara": (574, 702),
    "china": (427, 640),
    "flower": (427, 640),
    "astronaut": (512, 512),
    "camera": (512, 512),
    "chelsea": (300, 451),
    "coffee": (400, 600),
    "brick": (512, 512),
    "grass": (512, 512),
    "gravel": (512, 512),
}
PACKAGE = {"barbara": "sporco", "china": "sklearn", "flower": "sklearn"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(PACKAGE.get(name, "skimage"))) for name in SHAPES])
def test_photographs_are_gray_and_between_black_and_white(name):
    image = load_photograph(name)
    assert image.shape == SHAPES[name] and image.dtype == np.float32
    assert 0 <= image.min() < 0.3 and 0.7 < image.max() <= 1


@needs("sporco")
def test_barbara_as_the_energy_autoencoder_wants_it():
    image = load_photograph("barbara", size=512, dtype=np.float64)
    assert image.shape == (512, 512) and image.dtype == np.float64
    np.testing.assert_array_equal(image, load_photograph("barbara", dtype=np.float64)[31:543, 95:607])
    patches = extract_patches(image, 12)
    assert patches.X.shape == (1764, 144)
    np.testing.assert_array_equal(patches.to_image(), image[:504, :504])


def test_a_photograph_is_what_scikit_learn_reads():
    from sklearn.datasets import load_sample_image

    expected = load_sample_image("china.jpg") @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(load_photograph("china", dtype=np.float64), expected, atol=1e-14)


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
FILES = {
    "gray": (PIXELS[..., 0], PIXELS[..., 0] / 255),
    "gray, 16 bits": (257 * PIXELS[..., 0].astype(np.uint16), PIXELS[..., 0] / 255),
    "black and white": (PIXELS[..., 0] > 99, PIXELS[..., 0] > 99),
    "color": (PIXELS[..., :3], PIXELS[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255),
    "color, transparent": (PIXELS, PIXELS[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_become_gray_between_0_and_1(tmp_path, kind):
    pixels, expected = FILES[kind]
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_allclose(read_image(str(tmp_path / "image.png"), np.float64), expected, atol=1e-14)


def test_palettes_become_gray_and_floats_stay(tmp_path):
    palette = Image.fromarray(PIXELS[..., :3]).quantize(16)
    palette.save(tmp_path / "palette.png")
    expected = np.asarray(palette.convert("RGB")) @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(read_image(tmp_path / "palette.png", np.float64), expected, atol=1e-14)
    values = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "floats.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "floats.tiff"), values)


def test_gray_stays_gray():
    image = np.ones((3, 4), np.float32)
    assert to_gray(image) is image
    np.testing.assert_allclose(to_gray(np.ones((3, 4, 3), np.float32)), image, rtol=1e-6)
    assert to_gray(np.ones((3, 4, 3), np.float32)).dtype == np.float32


@pytest.mark.parametrize("shape", [(3,), (3, 4, 2), (1, 3, 4, 3)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="height, width"):
        to_gray(np.ones(shape))


def test_bad_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="barbara"):
        load_photograph("lena")
    for size in (0, 428, 2.5):
        with pytest.raises(ValueError, match="between 1 and 427"):
            load_photograph("china", size=size)


def test_what_is_missing_is_named_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`sporco`, which is not installed.*bilevel\[data\]"):
        load_photograph("barbara")
    with pytest.raises(ImportError, match=r"Pillow.*bilevel\[data\]"):
        read_image(tmp_path / "image.png")


def test_a_package_that_has_lost_its_file_is_named():
    with pytest.raises(ImportError, match=r"no file data/none.png"):
        packages.packaged_file("sklearn", "data/none.png", "scikit-learn")


@needs("sporco")
def test_packages_are_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "sporco", raising=False)
    load_photograph("barbara")
    assert "sporco" not in sys.modules
