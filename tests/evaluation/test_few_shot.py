"""Episodes, published protocols and nearest neighbours, on made-up embeddings and by loops."""

import types
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import few_shot, neighbours, verification
from evaluation.protocols import episode_scores
from evaluation.scores import Options
from pipeline.files import DataError


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=9),
    st.integers(2, 8),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_trials_keep_their_rules(sizes, ways, shots, within, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)) * 3 + 5, sizes))
    families = labels % 2 if within else None
    eligible = {label for label in labels.tolist() if np.sum(labels == label) > shots}
    pools = [[e for e in eligible if not within or e % 2 == parity] for parity in (0, 1)]
    largest = max(map(len, pools))
    if largest < 2:
        with pytest.raises(ValueError, match="at least 2 classes"):
            few_shot.draw_trials(labels, ways, shots, 50, rng, families)
        return
    trials = few_shot.draw_trials(labels, ways, shots, 50, rng, families)
    assert trials.references.shape == (50, min(ways, largest), shots)
    for query, references, answer in zip(*trials, strict=True):
        classes = labels[references]
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == len(classes)
        assert set(classes[:, 0].tolist()) <= eligible
        assert len(set(references.ravel().tolist())) == references.size
        assert query not in references
        assert labels[query] == classes[answer, 0]
        assert not within or len({*(classes[:, 0] % 2).tolist()}) == 1


def test_trials_draw_every_image_and_place_as_often(rng):
    labels = np.repeat(np.arange(4), 3)
    queries, references, answers = few_shot.draw_trials(labels, 3, 2, 24_000, rng)
    one_place = references[:, 0, 0]
    for drawn, size in ((queries, 12), (references, 12), (one_place, 12), (answers, 3)):
        expected = drawn.size / size
        times = np.bincount(drawn.ravel(), minlength=size)
        assert np.all(np.abs(times - expected) < 5 * np.sqrt(expected))
    # Families that have enough classes are as likely, whatever their size.
    labels, families = np.repeat(np.arange(12), 2), np.repeat([0, 1, 2], [4, 12, 8])
    trials = few_shot.draw_trials(labels, 4, 1, 600, rng, families)
    assert np.bincount(families[trials.queries])[0] == 0
    assert np.bincount(families[trials.queries])[1:].min() > 240


@pytest.mark.parametrize(
    ("ways", "shots", "message"),
    [(2, 2, "3 images each.* and 0 such.* fewer shots"), (1, 1, "ways=1"), (2, 0, "1 images each")],
)
def test_trials_that_cannot_be_drawn_are_an_error(ways, shots, message, rng):
    with pytest.raises(ValueError, match=message):
        few_shot.draw_trials(np.array([0, 0, 1, 1]), ways, shots, 10, rng)


@pytest.mark.parametrize("order", [1, 2])
def test_trial_distances_are_those_of_a_loop_over_prototypes(rng, monkeypatch, city_block, order):
    learned = city_block if order == 1 else None
    monkeypatch.setattr(verification, "CHUNK", 200)
    labels = np.repeat(np.arange(6), 5)
    embeddings = rng.normal(size=(30, 4)).astype(np.float32)
    trials = few_shot.draw_trials(labels, 4, 3, 40, rng)
    expected = [
        [np.linalg.norm(embeddings[query] - embeddings[of].mean(axis=0), order) for of in classes]
        for query, classes, _ in zip(*trials, strict=True)
    ]
    found = few_shot.trial_distances(embeddings, trials, learned)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    right = np.mean(np.argmin(expected, axis=1) == trials.answers)
    assert few_shot.few_shot_accuracy(found, trials.answers) == pytest.approx(right)


def test_pixels_as_bytes_neither_wrap_nor_truncate():
    pixels = np.array([[0], [3], [4], [255], [250], [251]], np.uint8)
    trials = few_shot.Trials(np.array([0]), np.array([[[1, 2], [3, 4]]]), np.array([0]))
    assert few_shot.trial_distances(pixels, trials).tolist() == [[3.5, 252.5]]
    assert verification.pair_distances(pixels, np.array([0]), np.array([3])).tolist() == [255]


def test_ties_share_their_credit():
    distances = np.array([[1, 1, 2, 3], [1, 2, 2, 3], [5, 5, 5, 5], [2, 1, 1, 1]])
    credit = few_shot.trial_credit(distances, np.array([1, 1, 3, 2]))
    assert credit.tolist() == [1 / 2, 0, 1 / 4, 1 / 3]
    with pytest.raises(ValueError, match="1 of 2 NaN"):
        few_shot.trial_credit(np.array([[1, np.nan]]), np.array([0]))


# Protocols


def errors(name, embeddings, labels, families=None):
    parts = {"trial_labels": labels, "embeddings": embeddings, "families": families}
    held = types.SimpleNamespace(name="unseen", distance=None, **parts)
    found = episode_scores(name, [held], Options())
    return {row["name"].rpartition(" ")[2]: row["error"] for row in found["rows"]}


def test_5_way_of_perfect_and_constant_embeddings():
    labels = np.arange(12).repeat(25)
    perfect = np.eye(12)[labels]
    assert errors("5-way", perfect, labels) == {"1-shot": 0, "5-shot": 0}
    constant = errors("5-way", perfect * 0, labels)
    assert constant == pytest.approx({"1-shot": 0.8, "5-shot": 0.8})


def test_within_takes_its_classes_from_one_family():
    labels = np.arange(40).repeat(3)
    embeddings = np.eye(20)[labels % 20]  # across families, each class has a double
    assert errors("omniglot-within", embeddings, labels, labels // 20) == {"1-shot": 0}
    with pytest.raises(DataError, match="20 classes of one family with 2 images each"):
        errors("omniglot-within", embeddings, labels, labels // 10)


# Neighbours


@pytest.mark.parametrize("order", [1, 2])
def test_neighbours_are_those_of_a_double_loop(rng, monkeypatch, city_block, order):
    """Three classes, two images with a wrong label, one alone in its class."""
    monkeypatch.setattr(verification, "CHUNK", 100)
    truth = np.repeat([0, 1, 2], 12)
    embeddings = rng.normal(size=(36, 4)) * 0.2 + np.eye(3, 4)[truth]
    labels = truth.copy()
    labels[[3, 20]], labels[35] = [2, 0], 3
    nearest = neighbours.nearest(embeddings, city_block if order == 1 else None)
    pairs = []
    for row in range(36):
        others = [other for other in range(36) if other != row]
        others.sort(key=lambda o: np.linalg.norm(embeddings[row] - embeddings[o], order))  # noqa: B023
        assert nearest[row].tolist() == others[:5]
        pairs.append((labels[row], labels[others[0]]))
    names = np.array(["oak", "elm", "ash", "fir"])
    scores, times = neighbours.retrieval_scores(names[labels], nearest), Counter(pairs)
    assert scores["recall_at_1"] == sum(a == b for a, b in pairs) / 35
    assert scores["class_recall_at_1"]["oak"] == times[0, 0] / np.sum(labels == 0)
    assert "fir" not in scores["class_recall_at_1"]
    for one, other, count in scores["most_confused"]:
        assert count == times[(*np.flatnonzero(names == one), *np.flatnonzero(names == other))]
    assert all(one != other for one, other, _ in scores["most_confused"])
    classes, shares = neighbours.most_confused(labels, nearest, 3)
    assert {2, 0} < {*classes} and shares.sum(axis=1).max() <= 1
    assert shares[0, 0] == times[0, 0] / np.sum(labels == 0)
    found = neighbours.suspected_label_errors(labels, nearest)
    assert {image for image, *_ in found} == {3, 20, 35}
    assert all(labels[twin] == truth[image] != labels[image] for image, twin, _ in found)
    assert not neighbours.retrieval_scores(np.arange(36), nearest)
