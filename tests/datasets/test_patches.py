import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.image import extract_patches_2d

from bilevel.datasets import extract_patches

SHAPE = (13, 10)


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0.1, 1, SHAPE)


def test_patches_side_by_side_are_the_blocks_of_the_image(image):
    patches = extract_patches(image, (4, 3))
    blocks = [image[i : i + 4, j : j + 3].ravel() for i in (0, 4, 8) for j in (0, 3, 6)]
    np.testing.assert_array_equal(patches.X, blocks)
    assert patches.covered_shape == (12, 9) and patches.image_shape == SHAPE
    np.testing.assert_array_equal(patches.to_image(), image[:12, :9])


def test_patches_at_every_pixel_are_those_of_scikit_learn(image):
    np.testing.assert_array_equal(
        extract_patches(image, (4, 3), stride=1).X, extract_patches_2d(image, (4, 3)).reshape(-1, 12)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [1, (2, 3), (4, 3)])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_way_back_is_the_image_as_it_was(image, dtype, stride, center, normalize):
    image = image.astype(dtype)
    patches = extract_patches(image, (4, 3), stride=stride, cover=True, center=center, normalize=normalize)
    back = patches.to_image()
    assert patches.X.dtype == back.dtype == dtype and back.shape == SHAPE
    np.testing.assert_allclose(back, image, rtol=0, atol=4 * np.finfo(dtype).eps)
    if center:
        np.testing.assert_allclose(patches.X.mean(axis=1), 0, atol=10 * np.finfo(dtype).eps)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(patches.X, axis=1), 1, rtol=10 * np.finfo(dtype).eps)


def test_rows_that_are_no_numbers_make_no_image(image):
    patches = extract_patches(image, (4, 3))
    with pytest.raises(ValueError, match="`X` is not finite in 1 of its"):
        patches.to_image(np.where(np.arange(len(patches.X))[:, None] == 2, np.nan, patches.X))


def test_a_pixel_is_the_mean_of_all_patches_that_have_it(image):
    """The least-squares image of given patches, by a dense matrix that takes an image to its patches."""
    patches = extract_patches(image, (4, 3), stride=(3, 2), cover=True, center=True, normalize=True)
    X = np.random.default_rng(1).normal(size=patches.X.shape)
    take = np.stack(
        [extract_patches(e.reshape(SHAPE), (4, 3), stride=(3, 2), cover=True).X.ravel() for e in np.eye(130)], axis=1
    )
    given = (X * patches.scales[:, None] + patches.means[:, None]).ravel()
    nearest = np.linalg.lstsq(take, given, rcond=None)[0].reshape(SHAPE)
    np.testing.assert_allclose(patches.to_image(X), nearest, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 1e200])
def test_a_constant_patch_has_no_direction(value):
    image = np.full((4, 8), value)
    image[:, 4:] *= np.linspace(1, 2, 16).reshape(4, 4)
    patches = extract_patches(image, 4, center=True, normalize=True)
    np.testing.assert_array_equal(patches.X[0], 0)
    assert patches.scales[0] == 1
    assert np.linalg.norm(patches.X[1]) == pytest.approx(float(value > 0), rel=1e-12)
    np.testing.assert_allclose(patches.to_image(), image, rtol=1e-14)


def test_an_image_of_one_patch(image):
    patches = extract_patches(image, SHAPE, stride=1, cover=True)
    np.testing.assert_array_equal(patches.X, image.reshape(1, -1))


def test_whole_numbers_keep_their_values():
    patches = extract_patches(np.arange(16, dtype=np.uint8).reshape(4, 4), 2)
    assert patches.X.dtype == np.float32
    np.testing.assert_array_equal(patches.X[0], [0, 1, 4, 5])


def test_patches_of_a_file(tmp_path, image):
    pixels = np.round(255 * image).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    patches = extract_patches(tmp_path / "image.png", 2)
    np.testing.assert_allclose(patches.to_image(), pixels[:12].astype(float) / 255, rtol=1e-6)


GOOD = np.ones(SHAPE)
BAD = [
    (GOOD, dict(patch_shape=11), "smaller than a patch"),
    (GOOD, dict(patch_shape=(14, 2)), "smaller than a patch"),
    (np.ones((0, 0)), dict(patch_shape=1), "smaller than a patch"),
    (GOOD, dict(patch_shape=0), "patch_shape"),
    (GOOD, dict(patch_shape=2.0), "patch_shape"),
    (GOOD, dict(patch_shape=True), "patch_shape"),
    (GOOD, dict(patch_shape=(2, 2, 3)), "patch_shape"),
    (GOOD, dict(patch_shape=2, stride=3), "gaps"),
    (GOOD, dict(patch_shape=2, stride=0), "stride"),
    (np.ones((8, 8, 3)), dict(patch_shape=2), "to_gray"),
    (np.ones((8, 8, 8)), dict(patch_shape=2), "height, width"),
    (np.ones(8), dict(patch_shape=2), "height, width"),
    (np.where(np.eye(8), np.nan, 1), dict(patch_shape=2), "not finite in 8 of its 64"),
    (np.where(np.eye(8), np.inf, 1), dict(patch_shape=2), "not finite"),
    (np.ones((8, 8), complex), dict(patch_shape=2), "real numbers"),
    (np.full((8, 8), "a"), dict(patch_shape=2), "real numbers"),
]


@pytest.mark.parametrize(("image", "options", "message"), BAD)
def test_bad_input_is_named(image, options, message):
    with pytest.raises(ValueError, match=message):
        extract_patches(image, **options)


def test_other_rows_must_be_as_many_and_as_long(image):
    patches = extract_patches(image, 3)
    with pytest.raises(ValueError, match="one row for each patch"):
        patches.to_image(patches.X[1:])
