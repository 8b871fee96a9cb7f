"""Intervals against a known truth: made-up embeddings whose population can be drawn at will."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics

from evaluation import few_shot, intervals, thresholds, verification
from evaluation.intervals import Units

THRESHOLD, DIM = 5.0, 8


def population(classes, images, spread, rng, centres=None):
    """`(embeddings, labels, centres)`: classes as normal clouds about normal centres."""
    if centres is None:
        centres = rng.normal(size=(classes, DIM)) * spread
    labels = np.repeat(np.arange(len(centres)), images)
    return centres[labels] + rng.normal(size=(len(labels), DIM)), labels, centres


def scored_pairs(embeddings, labels, rng):
    left, right, same = verification.draw_verification_pairs(labels, rng)
    distances = verification.pair_distances(embeddings, left, right)
    scores = verification.verification_scores(same, distances, THRESHOLD)
    return scores, (same, distances, left, right)


def one_shot(embeddings, labels, ways, trials, rng):
    drawn = few_shot.draw_trials(labels, ways, 1, trials, rng)
    distances = few_shot.trial_distances(embeddings, drawn)
    return few_shot.few_shot_accuracy(distances, drawn.answers)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_the_truth_lies_inside_95_times_in_100(known):
    """Of unseen classes the truth is other classes', of known ones other images of the same."""
    rng, inside, times = np.random.default_rng(1), {}, 150
    shape = (20, 8, 1.5) if known else (30, 8, 1.5)
    truths = {}
    for _ in range(times):
        embeddings, labels, centres = population(*shape, rng)
        if known or not truths:
            large = population(2000, 8, 1.5, rng)[:2]
            if known:
                large = population(20, 200, 1.5, rng, centres)[:2]
            truths, pairs = scored_pairs(*large, rng)
            truths["5-way"] = one_shot(*large, 5, 20_000, rng)
            truths["cut"] = thresholds.equal_error_rate(*pairs[:2])[1]
        scores, pairs = scored_pairs(embeddings, labels, rng)
        units = Units.of(labels, np.zeros(len(labels)), known)
        found = intervals.verification_intervals(scores, *pairs, THRESHOLD, units, rng)
        accuracy = one_shot(embeddings, labels, 5, 1000, rng)
        parts = {"embeddings": embeddings, "trial_labels": labels, "units": units}
        held = SimpleNamespace(**parts, distance=None)
        found["5-way"] = intervals.few_shot_intervals({5: accuracy}, 1, held, rng, 1000)[5]
        if not known:
            classes = labels[np.stack(pairs[2:])]
            found["cut"] = thresholds.choose_threshold(*pairs[:2], None, classes)["interval"]
        for name in {"auc", "equal_error_rate", "accuracy", "5-way", "cut"} & found.keys():
            low, high = found[name]
            inside.setdefault(name, []).append(low <= truths[name] <= high)
    shares = {name: np.mean(hits) for name, hits in inside.items()}
    assert all(share >= 0.9 for share in shares.values()), shares
    assert np.mean([*shares.values()]) <= 0.99, shares


def test_a_weighted_curve_is_scikit_learns(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings, labels, _ = population(8, 5, 1.0, rng)
    _, (same, distances, left, right) = scored_pairs(embeddings, labels, rng)
    units = Units.of(labels, labels, known=False)
    times = rng.uniform(0.5, 1.5, (2, 8))
    monkeypatch.setattr(Units, "weights", lambda self, rng: times)
    found = intervals.resampled_scores(same, distances, left, right, THRESHOLD, units, rng)
    for drawn, scores in zip(times, found, strict=True):
        one, other = labels[left], labels[right]
        weight = np.where(one == other, drawn[one], drawn[one] * drawn[other])
        expected = metrics.roc_auc_score(same, -distances, sample_weight=weight)
        assert scores["auc"] == pytest.approx(expected)
        right_ones = same == (distances < THRESHOLD)
        assert scores["accuracy"] == pytest.approx(np.average(right_ones, weights=weight))


def test_one_variance_gives_wilsons_interval():
    """8 of 10 without any other variance: Wilson (1927) with t for 9 degrees of freedom."""
    units = Units(np.arange(10), np.zeros(10, int))
    low, high = units.interval(0.8, np.full(100, 0.8), trials=10)
    t, p, n = 2.262157, 0.8, 10
    middle = (p + t * t / (2 * n)) / (1 + t * t / n)
    half = t * np.sqrt(p * (1 - p) / n + t * t / (4 * n * n)) / (1 + t * t / n)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-4)
    assert units.interval(1.0, np.ones(100))[1] == 1.0


def test_units_are_families_where_there_are_enough():
    labels, families = np.arange(12).repeat(2), np.arange(6).repeat(4)
    assert len(Units.of(labels, families, known=False).strata) == 6
    assert len(Units.of(labels, families // 2, known=False).strata) == 12
    known = Units.of(labels, families, known=True)
    assert len(known.strata) == 24 and known.t == pytest.approx(2.178813)  # 12 degrees
