"""Checks the mathematics of evaluation against loops, hand values and scikit-learn."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn import metrics

from evaluation import thresholds, verification

# Pairs


def as_set(left, right):
    drawn = {(*pair,) for pair in np.sort([left, right], axis=0).T.tolist()}
    assert len(drawn) == len(left), "a pair was drawn twice"
    return drawn


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=24),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
def test_pairs_are_right_different_and_as_many_as_there_are(labels, max_pairs, seed):
    labels = np.array(labels) * 10 - 20  # neither consecutive nor positive
    every = [*itertools.combinations(range(len(labels)), 2)]
    genuine = {(i, j) for i, j in every if labels[i] == labels[j]}
    impostors = {*every} - genuine
    rng = np.random.default_rng(seed)
    if not genuine or not impostors:
        with pytest.raises(ValueError, match="at least 2 classes"):
            verification.draw_verification_pairs(labels, rng, max_pairs)
        return
    left, right, same = verification.draw_verification_pairs(labels, rng, max_pairs)
    assert as_set(left[same], right[same]) <= genuine
    assert as_set(left[~same], right[~same]) <= impostors
    sizes = [n * (n - 1) // 2 for n in np.unique(labels, return_counts=True)[1] if n > 1]
    most = 3 * sorted(sizes)[(len(sizes) - 1) // 2]  # of one class
    assert same.sum() == min(max_pairs, sum(min(size, most) for size in sizes))
    assert np.sum(~same) == min(same.sum(), len(impostors))


def test_forgeries_are_skilled_impostors_alone(rng):
    labels, forged = np.repeat(np.arange(5), 12), np.tile(np.arange(12) >= 9, 5)
    forged[labels == 3], forged[labels == 4] = False, True  # none of 3, nothing but them of 4
    left, right, same = verification.draw_verification_pairs(labels, rng, 80, forged)
    assert same.sum() == 80 and np.sum(~same) == 80
    assert not forged[left].any() and not forged[right[same]].any()
    as_set(left, right)
    skilled = forged[right]
    assert skilled.sum() == 40 and (labels[left] == labels[right])[skilled].all()
    imitated = np.bincount(labels[right[skilled]], minlength=5)
    assert imitated[:3].min() >= 6 and not imitated[3:].any()  # of 13
    assert (labels[left] == labels[right])[~skilled].tolist() == same[~skilled].tolist()


def test_big_classes_do_not_drown_small_ones_and_pairs_are_as_likely(rng):
    labels = np.repeat(np.arange(6), [2000, 40, 40, 40, 40, 40])
    left, right, same = verification.draw_verification_pairs(labels, rng, 900)
    assert np.bincount(labels[left[same]]).tolist() == [150] * 6
    class_pairs = np.sort([labels[left[~same]], labels[right[~same]]], axis=0)
    _, times = np.unique(class_pairs, axis=1, return_counts=True)
    assert len(times) == 15 and np.all(np.abs(times - 60) < 40)  # 5 standard deviations
    times = np.zeros((5, 5), int)
    for _ in range(3_000):
        left, right, same = verification.draw_verification_pairs([0, 0, 0, 0, 1], rng, 2)
        np.add.at(times, (left[same], right[same]), 1)
    assert np.all(np.abs(times[np.triu_indices(4, 1)] - 1_000) < 120)  # 4.6 standard deviations


def test_pairs_among_a_hundred_thousand_images_need_little_memory(rng):
    tracemalloc.start()
    every = np.arange(100_000)
    for labels in (every // 2, every % 2, rng.integers(30_000, size=100_000)):
        left, right, same = verification.draw_verification_pairs(labels, rng)
        assert same.sum() == np.sum(~same) == 20_000 and np.all(left != right)
        assert np.array_equal(labels[left] == labels[right], same)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["euclidean", "cityblock"])
def test_distances_are_those_of_scipy(rng, monkeypatch, city_block, name):
    learned = city_block if name == "cityblock" else None
    monkeypatch.setattr(verification, "CHUNK", 16)
    left, others = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(9, 5))
    others, expected = others.astype(np.float32), cdist(left, others.astype(np.float32), name)
    found = verification.all_distances(left, others, learned)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.diag(verification.all_distances(left, left, learned)) == 0).all()
    assert verification.all_distances(left[:0], others, learned).shape == (0, 9)
    one, other = np.divmod(rng.permutation(54), 9)
    found = verification.pair_distances(np.concatenate([left, others]), one, 6 + other, learned)
    np.testing.assert_allclose(found, expected[one, other], rtol=1e-5)


# Thresholds and curves


def accept_rates(same, distances, threshold):
    pairs = zip(same.tolist(), distances, strict=True)
    accepted = [same for same, distance in pairs if distance < threshold]
    return accepted.count(False) / np.sum(~same), accepted.count(True) / np.sum(same)


some_pairs = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 3.0])),
    min_size=2,
    max_size=30,
).filter(lambda pairs: {same for same, _ in pairs} == {True, False})


@settings(max_examples=80, deadline=None)
@given(some_pairs, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_thresholds_hold_what_they_promise(pairs, rate):
    same, distances = np.array([s for s, _ in pairs]), np.array([d for _, d in pairs])
    every = [-1.0, *(np.unique(distances) + 0.01)]
    rates = [accept_rates(same, distances, threshold) for threshold in every]

    threshold = thresholds.threshold_at_false_accept(same, distances, rate)
    best_true = max(true for false, true in rates if false <= rate)
    assert accept_rates(same, distances, threshold)[0] <= rate
    assert accept_rates(same, distances, threshold)[1] == best_true

    accuracy = verification.verification_scores(same, distances, 0.3)["best_accuracy"]
    balanced = [(1 - false + true) / 2 for false, true in rates]
    assert accuracy == pytest.approx(max(balanced))
    false, true = accept_rates(same, distances, thresholds.best_threshold(same, distances))
    assert accuracy == pytest.approx((1 - false + true) / 2)

    error, threshold = thresholds.equal_error_rate(same, distances)
    gaps = [abs(false - (1 - true)) for false, true in rates]
    false, true = accept_rates(same, distances, threshold)
    assert abs(false - (1 - true)) == pytest.approx(min(gaps))
    assert min(false, 1 - true) - 1e-9 <= error <= max(false, 1 - true) + 1e-9


def test_thresholds_by_hand():
    # Between the points (0, 1/2) and (1/2, 1) the curve meets the diagonal half way.
    assert thresholds.equal_error_rate([1, 1, 0, 0], [1.0, 2.0, 2.0, 3.0])[0] == 0.25
    high = np.nextafter(1.0, 2)  # neighbouring floats are still parted
    assert thresholds.best_threshold(np.array([True, False]), [1.0, high]) == high


def test_pairs_that_cannot_be_scored_are_an_error():
    cases = ([1, 1], 0.2, "0 impostors"), ([0, 0], 0.2, "0 genuine"), ([1, 0], np.nan, "1 of 2")
    for same, distance, message in cases:
        with pytest.raises(ValueError, match=message):
            thresholds.equal_error_rate(same, [0.1, distance])


@pytest.mark.parametrize("impostors", [20_000, 2_000])
def test_calibration_means_even_odds_whatever_was_drawn(rng, impostors):
    """Normal clouds about 1 and 3: by Bayes the log odds are 4 - 2 x, zero half way."""
    distances = np.concatenate([rng.normal(1, 1, 20_000), rng.normal(3, 1, impostors)])
    same = np.arange(len(distances)) < 20_000
    calibration = thresholds.calibrate(same, distances, 2.0)
    assert calibration == pytest.approx((-2, 4), rel=0.05)
    assert {*map(type, calibration)} == {float}  # as JSON can hold
    assert thresholds.probability(2.0, calibration) == pytest.approx(0.5)


@pytest.mark.parametrize("impostor", [2.0, 0.0])
def test_calibration_survives_perfect_and_constant_distances(impostor):
    same, distances = np.arange(40) < 20, np.repeat([0.0, impostor], 20)
    calibration = thresholds.calibrate(same, distances, impostor / 2)
    assert np.isfinite(calibration).all()
    near, far = thresholds.probability([0.0, 2.0], calibration)
    assert (near > 0.9 and far < 0.1) if impostor else near == pytest.approx(0.5)


def test_verification_scores_are_those_of_scikit_learn(rng):
    labels = np.repeat(np.arange(30), 12)
    embeddings = rng.normal(size=(360, 8)) + rng.normal(size=(30, 8))[labels]
    left, right, same = verification.draw_verification_pairs(labels, rng, 1_500)
    distances = verification.pair_distances(embeddings, left, right).round(1)  # with ties
    found = verification.verification_scores(same, distances, 3.5)
    accepted = distances < 3.5
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(same, -distances), abs=1e-12)
    assert found["accuracy"] == np.mean(accepted == same)
    assert found["precision"] == np.mean(same[accepted])
    assert found["recall"] == np.mean(accepted[same])
    assert found["num_genuine"] == found["num_impostors"] == 1_500
    assert found["smallest_rate"] == 10 / 1_500
    for name, rate in (("10", 0.1), ("1", 0.01)):
        threshold = thresholds.threshold_at_false_accept(same, distances, rate)
        assert found[f"true_accept_at_{name}_percent"] == np.mean(distances[same] < threshold)
    assert "true_accept_at_0.1_percent" not in found  # too few impostors to measure it
    json.dumps(found)
    assert verification.verification_scores(same, distances, 0.0)["precision"] == 0
