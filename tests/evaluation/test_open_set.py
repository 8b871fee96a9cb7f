"""Strangers are accepted at the rate asked for, by loops and by simulated classes."""

import numpy as np
import pytest

from evaluation import open_set
from evaluation.open_set import OpenSet, learn


def draw(rng, num_classes, per_class, crowding=1.0, dim=8):
    """Classes whose centres lie closer together the smaller `crowding` is."""
    centres = rng.normal(size=(num_classes, dim)) * crowding
    labels = np.repeat(np.arange(num_classes), per_class)
    return centres[labels] + 0.1 * rng.normal(size=(len(labels), dim)), labels


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    cohort, classes = draw(rng, 100, 5)
    images, labels = draw(rng, 100, 5)
    return learn(cohort, classes, images, labels + 100)


def test_background_is_the_mean_of_the_nearest_without_class_of_the_nearest():
    rng = np.random.default_rng(1)
    cohort, classes = draw(rng, 6, 4)
    images, labels = draw(rng, 6, 2)
    known = OpenSet(cohort, classes, np.ones(1), np.ones(1))
    for given in (None, labels):
        found = known.background(images, given)
        for row, image in enumerate(images):
            left = [
                (np.linalg.norm(image - other), label)
                for other, label in zip(cohort, classes, strict=True)
                if given is None or label != given[row]
            ]
            nearest = min(left)[1]
            rest = sorted(distance for distance, label in left if label != nearest)
            assert found[row] == pytest.approx(np.mean(rest[: open_set.NEAREST]))
    two = OpenSet(cohort[:8], classes[:8], np.ones(1), np.ones(1))
    assert (two.background(images) == 0).all()


def test_scores_are_those_of_every_impostor_pair(known):
    rng = np.random.default_rng(2)
    images, labels = draw(rng, 10, 3)
    few = learn(known.cohort, known.classes + 50, images, labels)
    background = OpenSet(known.cohort, known.classes, np.ones(1), np.ones(1)).background(images)
    expected = [
        np.linalg.norm(images[i] - images[j]) - background[i]
        for i in range(30)
        for j in range(30)
        if labels[i] != labels[j]
    ]
    assert few.shares[0] * len(expected) >= open_set.FEWEST and few.shares[-1] == 0.5
    for share, score in zip(few.shares, few.scores, strict=True):
        assert score == pytest.approx(np.quantile(expected, share))
        assert few.score_at(share) == pytest.approx(score)
    assert few.score_at(few.shares[0] / 10) < few.scores[0]


def accepted(known, rng, num_references, rate, crowding):
    """Share of strangers taken for a reference's class, over draws of both."""
    shares = []
    for _ in range(60):
        images, labels = draw(rng, num_references + 50, 2, crowding)
        rows = np.arange(2 * num_references, step=2)  # an image a class
        reach = known.reach(images[rows], labels[rows], rate)
        strangers = images[2 * num_references :]
        distances = np.linalg.norm(strangers[:, None] - images[rows], axis=2).min(axis=1)
        shares.append(np.mean(distances - known.background(strangers) < reach))
    return np.mean(shares)


@pytest.mark.parametrize(("num_references", "rate"), [(1, 0.05), (5, 0.05), (20, 0.05), (20, 0.2)])
def test_strangers_are_accepted_at_the_rate_asked_for(known, num_references, rate):
    rng = np.random.default_rng(3)
    found = accepted(known, rng, num_references, rate, 1.0)
    assert rate / 3 < found < 1.5 * rate  # few references make it careful


def test_references_of_a_crowded_kind_shrink_the_reach(known, monkeypatch):
    """Classes lie closer than those of validation, as unseen ones do; so do their strangers."""
    rng = np.random.default_rng(4)
    assert accepted(known, rng, 20, 0.05, 0.4) < 0.1
    monkeypatch.setattr(np, "median", lambda values: np.inf)  # what the references show
    assert accepted(known, rng, 20, 0.05, 0.4) > 0.3


def test_a_learned_distance_goes_everywhere_the_euclidean_goes(known):
    rng = np.random.default_rng(5)
    images, labels = draw(rng, 6, 3)
    arguments = known.cohort[:60], known.classes[:60], images, labels + 100

    def learned(left, right):
        assert left.shape == right.shape and left.dtype == right.dtype == np.float32
        return np.sqrt(((left - right) ** 2).sum(axis=1))

    plain, other = learn(*arguments), learn(*arguments, learned)
    assert other.scores == pytest.approx(plain.scores, abs=1e-4)
    expected = plain.reach(images, labels, 0.05)
    assert other.reach(images, labels, 0.05) == pytest.approx(expected, abs=1e-4)


def test_saved_and_loaded(known, tmp_path):
    known.save(tmp_path / "open_set.npz")
    loaded = OpenSet.load(tmp_path / "open_set.npz")
    images, labels = draw(np.random.default_rng(6), 5, 2)
    assert loaded.background(images) == pytest.approx(known.background(images), abs=1e-2)
    assert loaded.reach(images, labels, 0.01) == pytest.approx(
        known.reach(images, labels, 0.01), abs=1e-2
    )
