"""The baselines that a network has to beat, against loops and hand values."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from configs import Config
from evaluation import baselines
from evaluation.held_out import HeldOut
from evaluation.verification import verification_pairs
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index
from prepare_data import Dataset


def test_background_pixels_are_the_eight_on_the_border(rng):
    images = rng.integers(256, size=(3, 5, 7, 2), dtype=np.uint8)
    found = baselines.background_pixels(images)
    spots = [(0, 0), (0, 3), (0, 6), (2, 0), (2, 6), (4, 0), (4, 3), (4, 6)]
    assert found.tolist() == [[v for at in spots for v in image[at].tolist()] for image in images]


@pytest.mark.parametrize("paper", [0, 255])
def test_centred_pixels_forget_where_the_object_stood(paper, rng):
    shape = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
    images = np.full((5, 40, 40, 3), paper, np.uint8)
    for image, (row, column) in zip(images, [(2, 3), (15, 16), (28, 30), (30, 1)], strict=False):
        image[row : row + 9, column : column + 7] = shape
    found = baselines.centred_blurred_pixels(images, blur=0.05)  # sigma 2, every second pixel
    assert found.shape == (5, 20 * 20 * 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[1:4], found[:1].repeat(3, axis=0), atol=0.02)
    assert not found[4].any()  # an image of one colour

    mass = np.abs(shape - np.float64(paper)).mean(axis=2)
    places = np.argwhere(mass >= 0)  # all
    row, column = np.rint(19.5 - np.average(places, axis=0, weights=mass.ravel())).astype(int)
    middle = np.zeros((40, 40, 3))
    middle[row : row + 9, column : column + 7] = shape - np.float64(paper)
    blurred = np.stack([gaussian_filter(middle[..., c], 2) for c in range(3)], axis=-1)[1::2, 1::2]
    np.testing.assert_allclose(found[0].reshape(20, 20, 3), blurred, atol=0.5)


@pytest.mark.filterwarnings("error")
def test_a_nearest_neighbour_compares_large_images_smaller(rng):
    images = rng.integers(0, 256, (3, 224, 224, 3), np.uint8)
    small = baselines._smaller(images)
    assert small.shape == (3, 64, 64, 3)  # each the mean of 3.5 x 3.5 pixels
    np.testing.assert_allclose(small.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.5)
    drawings = images[:, :105, :105, :1]
    assert baselines._smaller(drawings) is drawings


def test_paper_and_pen_are_found(tmp_path, monkeypatch, rng):
    """Writers whose genuine images are on grey paper, forgeries with a darker pen."""
    monkeypatch.chdir(tmp_path)
    for writer in range(8):
        for number in range(6):
            for folder, pen in ((f"{writer}", 90), (f"{writer}_forg", 20)):
                pixels = np.full((40, 60), 180 + 8 * writer + rng.integers(3), np.uint8)
                pixels[10 + number : 14 + number, 20:30] = pen + rng.integers(4)
                path = tmp_path / "data" / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    index = read_index("data")
    dataset = Dataset(index, open_cache(index, Config(image_size=32)), splits=None)
    rows = np.arange(len(index))
    pairs = verification_pairs(dataset, rows, rng)
    held = HeldOut("unseen", dataset, rows, np.zeros((len(rows), 1)), None, pairs)
    assert [held.class_name(at) for at in (0, 6)] == ["0", "0, forged"]
    found = {row["name"]: row for row in baselines.shortcut_scores(held)}
    pen, paper = found["darkest tenth of a percent"], found["paper"]
    assert pen["skilled_auc"] > 0.99  # another pen
    assert abs(paper["skilled_auc"] - 0.5) < 0.1 < 0.45 < paper["auc"]  # the same paper
    assert found["width and height"]["auc"] == found["mode of the file"]["auc"] == 0.5
    after = {row["name"] for row in baselines.shortcut_scores(held, ink=True)} - found.keys()
    names = "paper", "darkest tenth of a percent", "mean colour", "eight border pixels"
    assert after == {f"{name}, after ink" for name in names}


def test_a_warning_where_a_number_comes_near_the_network():
    rows = [{"name": "paper", "auc": 0.93, "skilled_auc": 0.52}]
    scores = {"auc": 0.95, "skilled_auc": 0.9, "baselines": rows}
    [said] = baselines.shortcut_warnings(scores)
    assert "Paper alone: ROC AUC 0.930 against all impostors, the network 0.950" in said
    assert not baselines.shortcut_warnings(scores | {"auc": 1.2})
