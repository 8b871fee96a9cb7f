"""Scores against several references: by a plain loop, and what the tables promise."""

import itertools
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from evaluation import references
from evaluation.verification import all_distances


@pytest.fixture
def writers():
    """Embeddings, classes and forgeries of 60 writers with 10 genuine images and 4 forgeries."""
    rng = np.random.default_rng(0)
    labels, forged = np.repeat(np.arange(60), 14), np.tile(np.arange(14) >= 10, 60)
    centres, imitations = rng.normal(size=(60, 64)), rng.normal(size=(60, 64)) * 0.4
    embeddings = centres[labels] + forged[:, None] * imitations[labels]
    return embeddings + 0.3 * rng.normal(size=embeddings.shape), labels, forged


def test_scores_are_those_of_a_loop(writers):
    embeddings, labels, forged = writers
    distances = np.linalg.norm(embeddings[:, None] - embeddings, axis=2)
    scores = references.reference_distances(distances, labels, forged, 5, np.random.default_rng(3))
    rng, expected = np.random.default_rng(3), {"genuine": [], "random": [], "skilled": []}
    for writer in range(60):
        own = rng.permutation(np.flatnonzero((labels == writer) & ~forged))
        for row in [*own[5:], *np.flatnonzero(forged | (labels != writer))]:
            kind = "genuine" if row in own else "skilled" if labels[row] == writer else "random"
            if kind != "random" or not forged[row]:
                to = [np.linalg.norm(embeddings[row] - embeddings[one]) for one in own[:5]]
                among = [distances[a, b] for a, b in itertools.product(own[:5], repeat=2)]
                expected[kind].append((min(to), sum(to) / 5, sum(to) / 5 - sum(among) / 50))
    for kind, values in expected.items():
        for at, rule in enumerate(("nearest", "mean", "energy")):
            wanted = [value[at] for value in values]
            np.testing.assert_allclose(np.sort(scores[rule][kind]), np.sort(wanted))


def test_the_table_keeps_its_rate_on_other_writers(writers):
    embeddings, labels, forged = writers
    old, new = labels < 30, labels >= 30
    rng = np.random.default_rng(0)
    of_old = all_distances(embeddings[old], embeddings[old])
    table = references.reference_thresholds(of_old, labels[old], forged[old], rng)
    assert table["references"] == [1, 2, 5]
    errors = table["measured"]
    assert errors["nearest"].keys() == {"random", "skilled"} and table["impostors"] == "forgeries"
    assert errors[table["rule"]]["skilled"] == min(of["skilled"] for of in errors.values())
    distances = np.linalg.norm(embeddings[new][:, None] - embeddings[new], axis=2)
    for count in (1, 3, 5):
        scores = references.reference_distances(distances, labels[new], forged[new], count, rng)
        limit, _ = references.enrolled_threshold(table, count, 0.1)
        accepted = scores[table["rule"]]["skilled"] < limit
        assert accepted.mean() == pytest.approx(0.1, abs=0.07)
        threshold, rate = references.enrolled_threshold(table, count)
        rejected = scores[table["rule"]]["genuine"] >= threshold
        assert rejected.mean() == pytest.approx(rate, abs=0.07)


def test_many_more_references_than_validation_had():
    """In a plane the nearest of n points is as far as one over the root of n."""
    rng = np.random.default_rng(0)
    points = rng.random((300, 2))
    table = references.unknown_thresholds([row[row > 0] for row in all_distances(points, points)])
    assert table["references"][-1] == 200
    few, many = (references.unknown_threshold(table, number, 0.5) for number in (200, 20_000))
    assert few / 20 < many < few / 5


def test_who_writes_loosely_is_not_rejected_for_it():
    """Writers differ in how much their images vary, and forgers are as far beyond each of them."""
    rng = np.random.default_rng(2)
    labels, forged = np.repeat(np.arange(40), 12), np.tile(np.arange(12) >= 8, 40)
    spread, centres = rng.uniform(0.1, 1, (40, 1)), 10 * rng.normal(size=(40, 16))
    embeddings = centres[labels] + spread[labels] * rng.normal(size=(480, 16))
    embeddings += forged[:, None] * spread[labels] * 1.5
    of_all = all_distances(embeddings, embeddings)
    table = references.reference_thresholds(of_all, labels, forged, rng)
    errors = {rule: of["skilled"] for rule, of in table["measured"].items()}
    assert table["rule"] == "energy"
    assert errors["energy"] < 0.9 * min(errors["nearest"], errors["mean"])


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_what_cannot_be_measured(labels):
    images = np.eye(3), np.array(labels), np.zeros(3, bool), np.random.default_rng(0)
    assert references.reference_thresholds(*images) is None


def test_classes_without_overlap_have_thresholds(rng):
    labels = np.repeat(np.arange(20), 8)
    apart = np.float64(labels[:, None] != labels)
    assert references.reference_thresholds(apart, labels, np.zeros(160, bool), rng)["thresholds"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1])
def test_unknown_real_classes_are_accepted_as_often_as_stated(real_data, rate):
    """Characters by their blurred strokes: the table of some classes holds for others, within a
    factor of two, whatever the number of references."""
    with zipfile.ZipFile(real_data / "omniglot/images_background.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][::4]
        images = [np.asarray(Image.open(archive.open(name)).resize((15, 15))) for name in names]
    _, labels = np.unique([name.rpartition("/")[0] for name in names], return_inverse=True)
    embeddings = gaussian_filter(1 - np.array(images, float), (0, 1, 1)).reshape(len(images), -1)
    rng = np.random.default_rng(0)
    part = rng.integers(3, size=labels.max() + 1)[labels]  # validated on, enrolled, unknown
    known, classes = embeddings[part == 0], labels[part == 0]
    of_all = all_distances(known, known)
    impostors = [row[classes != own] for row, own in zip(of_all, classes, strict=True)]
    table = references.unknown_thresholds(impostors)
    unknown = embeddings[part == 2]
    for count in (1, 10, 100):
        threshold = references.unknown_threshold(table, count, rate)
        nearest = []
        for _ in range(40):
            chosen = embeddings[rng.choice(np.flatnonzero(part == 1), count, replace=False)]
            nearest.append(all_distances(unknown, chosen).min(axis=1))
        assert rate / 2 <= np.mean(np.array(nearest) < threshold) <= 2 * rate
