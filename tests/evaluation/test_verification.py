"""Checks the mathematics of evaluation against loops, hand values and scikit-learn."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn import metrics

from evaluation import few_shot, thresholds, verification


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def pairs():
    """Distances of 30 classes, with ties and with all that a bootstrap needs."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 12)
    embeddings = rng.normal(size=(360, 8)) + rng.normal(size=(30, 8))[labels]
    left, right, same = verification.draw_verification_pairs(labels, rng, 1_500)
    distances = verification.pair_distances(embeddings, left, right).round(1)
    return same, distances, labels[left], labels[right]


# Pairs


def all_pairs(labels, genuine):
    return {
        (i, j)
        for i, j in itertools.combinations(range(len(labels)), 2)
        if (labels[i] == labels[j]) == genuine
    }


def as_set(left, right):
    drawn = {(min(i, j), max(i, j)) for i, j in zip(left.tolist(), right.tolist(), strict=True)}
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
    genuine, impostors = all_pairs(labels, True), all_pairs(labels, False)
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
    assert np.bincount(labels[right[skilled]]).tolist() in (
        [14, 13, 13],
        [13, 14, 13],
        [13, 13, 14],
    )
    assert (labels[left] == labels[right])[~skilled].tolist() == same[~skilled].tolist()


def test_big_classes_do_not_drown_small_ones(rng):
    labels = np.repeat(np.arange(6), [2000, 40, 40, 40, 40, 40])
    left, right, same = verification.draw_verification_pairs(labels, rng, 900)
    assert np.bincount(labels[left[same]]).tolist() == [150] * 6
    class_pairs = np.sort([labels[left[~same]], labels[right[~same]]], axis=0)
    _, times = np.unique(class_pairs, axis=1, return_counts=True)
    assert times.tolist() == [60] * 15


def test_every_pair_within_a_class_is_as_likely(rng):
    labels = np.array([0, 0, 0, 0, 1])
    drawn = [verification.draw_verification_pairs(labels, rng, 2) for _ in range(3_000)]
    times = np.zeros((5, 5), int)
    for left, right, same in drawn:
        np.add.at(times, (left[same], right[same]), 1)
    assert np.all(np.abs(times[np.triu_indices(4, 1)] - 1_000) < 120)  # 4.6 standard deviations


def test_pairs_among_a_hundred_thousand_images_need_little_memory(rng):
    import tracemalloc

    tracemalloc.start()
    for labels in (
        np.arange(100_000) // 2,
        np.arange(100_000) % 2,
        rng.integers(30_000, size=100_000),
    ):
        left, right, same = verification.draw_verification_pairs(labels, rng)
        assert same.sum() == np.sum(~same) == 20_000
        assert np.array_equal(labels[left] == labels[right], same)
        assert np.all(left != right)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


@pytest.mark.parametrize("labels", [[], [3, 3, 3], [0, 1, 2]])
def test_pairs_that_cannot_be_drawn_are_an_error(labels, rng):
    with pytest.raises(ValueError, match="Received: .* Add images"):
        verification.draw_verification_pairs(np.array(labels, int), rng)


def test_pair_distances_are_those_of_a_loop(rng, monkeypatch):
    monkeypatch.setattr(verification, "CHUNK", 16)
    embeddings = rng.normal(size=(20, 5)).astype(np.float32)
    left, right = rng.integers(20, size=(2, 33))
    expected = [
        np.linalg.norm(np.float64(embeddings[i]) - embeddings[j])
        for i, j in zip(left, right, strict=True)
    ]
    np.testing.assert_allclose(
        verification.pair_distances(embeddings, left, right), expected, rtol=1e-12
    )

    def city_block(left, right):
        assert left.dtype == right.dtype == np.float32 and left.size <= 16
        return np.abs(left - right).sum(axis=1)

    expected = [
        np.abs(embeddings[i] - embeddings[j]).sum() for i, j in zip(left, right, strict=True)
    ]
    found = verification.pair_distances(embeddings, left, right, city_block)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_all_distances_are_those_of_scipy(rng, monkeypatch):
    monkeypatch.setattr(verification, "CHUNK", 16)
    left, right = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(9, 5))
    found, others = verification.all_distances(left, right), right.astype(np.float32)
    np.testing.assert_allclose(found, cdist(left, right), atol=1e-6)
    assert (np.diag(verification.all_distances(left, left)) == 0).all()
    assert verification.all_distances(left[:0], right).shape == (0, 9)
    learned = verification.all_distances(left, others, lambda a, b: np.abs(a - b).sum(axis=1))
    np.testing.assert_allclose(learned, cdist(left, others, "cityblock"), rtol=1e-6)


# Thresholds and curves


def accept_rates(same, distances, threshold):
    accepted = [bool(distance < threshold) for distance in distances]
    false = sum(a and not s for a, s in zip(accepted, same, strict=True)) / np.sum(~same)
    true = sum(a and bool(s) for a, s in zip(accepted, same, strict=True)) / np.sum(same)
    return false, true


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

    accuracy, threshold = thresholds.best_threshold(same, distances)
    balanced = [(1 - false + true) / 2 for false, true in rates]
    assert accuracy == pytest.approx(max(balanced))
    false, true = accept_rates(same, distances, threshold)
    assert accuracy == pytest.approx((1 - false + true) / 2)

    error, threshold = thresholds.equal_error_rate(same, distances)
    gaps = [abs(false - (1 - true)) for false, true in rates]
    false, true = accept_rates(same, distances, threshold)
    assert abs(false - (1 - true)) == pytest.approx(min(gaps))
    assert min(false, 1 - true) - 1e-9 <= error <= max(false, 1 - true) + 1e-9


def test_equal_error_by_hand():
    same = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    distances = np.array([1.0, 2, 3, 6, 4, 7, 8, 9])
    rate, threshold = thresholds.equal_error_rate(same, distances)
    assert rate == 0.25 and 4 < threshold < 6  # 6 is rejected, 4 accepted
    # Between the points (0, 1/2) and (1/2, 1) the curve meets the diagonal half way.
    rate, _ = thresholds.equal_error_rate([1, 1, 0, 0], [1.0, 2.0, 2.0, 3.0])
    assert rate == 0.25


def test_neighbouring_floats_are_still_parted():
    low = 1.0
    high = np.nextafter(low, 2)
    assert thresholds.best_threshold(np.array([True, False]), [low, high]) == (1.0, high)


@pytest.mark.parametrize(
    ("same", "distances", "message"),
    [
        ([1, 1], [0.1, 0.2], "0 impostors"),
        ([0], [0.1], "0 genuine"),
        ([1, 0], [0.1, np.nan], "1 of 2"),
    ],
)
def test_pairs_that_cannot_be_scored_are_an_error(same, distances, message):
    with pytest.raises(ValueError, match=message):
        thresholds.equal_error_rate(same, distances)


def test_calibration_finds_the_probability_that_made_the_pairs(rng):
    distances = rng.uniform(0, 4, 40_000)
    same = rng.random(40_000) < 1 / (1 + np.exp(3 * distances - 6))
    slope, intercept = calibration = thresholds.calibrate(same, distances, 2.0)
    assert type(slope) is type(intercept) is float
    assert slope == pytest.approx(-3, rel=0.05) and intercept == pytest.approx(6, rel=0.05)
    assert thresholds.probability(2.0, calibration) == pytest.approx(0.5, abs=0.02)


def test_calibration_means_even_odds_whatever_was_drawn(rng):
    genuine, impostor = rng.normal(1, 1, 20_000), rng.normal(3, 1, 20_000)
    distances = np.concatenate([genuine, impostor[:2_000]])
    calibration = thresholds.calibrate(np.arange(22_000) < 20_000, distances, 2.0)
    assert thresholds.probability(2.0, calibration) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("impostor", [2.0, 0.0])
def test_calibration_survives_perfect_and_constant_distances(impostor):
    same, distances = np.arange(40) < 20, np.repeat([0.0, impostor], 20)
    calibration = thresholds.calibrate(same, distances, impostor / 2)
    assert np.isfinite(calibration).all()
    near, far = thresholds.probability([0.0, 2.0], calibration)
    assert (near > 0.9 and far < 0.1) if impostor else near == pytest.approx(0.5)


def test_verification_scores_are_those_of_scikit_learn(pairs):
    same, distances, *_ = pairs
    threshold = thresholds.equal_error_rate(same, distances)[1]
    calibration = thresholds.calibrate(same, distances, threshold)
    chances = thresholds.probability(distances, calibration)
    found = verification.verification_scores(same, distances, 3.5, chances)
    accepted = distances < 3.5
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(same, -distances), abs=1e-12)
    assert found["accuracy"] == np.mean(accepted == same)
    assert found["precision"] == np.mean(same[accepted])
    assert found["recall"] == np.mean(accepted[same])
    expected = np.mean((thresholds.probability(distances, calibration) - same) ** 2)
    assert found["brier"] == pytest.approx(expected)
    smallest = 10 / np.sum(~same)
    assert found["smallest_rate"] == smallest
    for name, rate in (("10", 0.1), ("1", 0.01), ("0.1", 0.001)):
        if rate < smallest:  # too few impostors to measure it
            assert f"true_accept_at_{name}_percent" not in found
            continue
        threshold = thresholds.threshold_at_false_accept(same, distances, rate)
        assert found[f"true_accept_at_{name}_percent"] == np.mean(distances[same] < threshold)
    assert found["num_genuine"] == same.sum() and found["num_impostors"] == np.sum(~same)
    predicted, observed = found["reliability"].values()
    assert np.abs(np.subtract(predicted, observed)).max() < 0.12
    json.dumps(found)


def test_accuracy_is_not_precision():
    same, distances = np.array([1, 1, 1, 0], bool), np.array([0.1, 2.0, 2.0, 3.0])
    found = verification.verification_scores(
        same, distances, 0.5, thresholds.probability(distances, (-1.0, 1.0))
    )
    assert (found["precision"], found["accuracy"], found["recall"]) == (1.0, 0.5, 1 / 3)
    assert (
        verification.verification_scores(
            same, distances, 0.0, thresholds.probability(distances, (-1.0, 1.0))
        )["precision"]
        == 0
    )


# Trials


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
    families = labels % 2 if within else np.zeros(len(labels), int)
    eligible = {label for label in labels.tolist() if np.sum(labels == label) > shots}
    pools = [[e for e in eligible if not within or e % 2 == parity] for parity in (0, 1)]
    largest = max(map(len, pools))
    if largest < 2:
        with pytest.raises(ValueError, match="at least 2 classes"):
            few_shot.draw_trials(labels, ways, shots, 50, rng, families if within else None)
        return
    trials = few_shot.draw_trials(labels, ways, shots, 50, rng, families if within else None)
    assert trials.references.shape == (50, min(ways, largest), shots)
    for query, references, answer in zip(*trials, strict=True):
        classes = labels[references]
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == len(classes)
        assert set(classes[:, 0].tolist()) <= eligible
        assert len(set(references.ravel().tolist())) == references.size
        assert query not in references
        assert labels[query] == classes[answer, 0]
        assert len(set(families[references].ravel().tolist())) == 1


def test_trials_draw_every_image_and_place_as_often(rng):
    labels = np.repeat(np.arange(4), 3)
    queries, references, answers = few_shot.draw_trials(labels, 3, 2, 24_000, rng)
    for drawn, size, places in ((queries, 12, 1), (references, 12, 6), (answers, 3, 1)):
        expected = 24_000 * places / size
        assert np.all(np.abs(np.bincount(drawn.ravel()) - expected) < 5 * np.sqrt(expected))
    # The places within a class are as likely too.
    expected = 24_000 / 12
    times = np.bincount(references[:, 0, 0], minlength=12)
    assert np.all(np.abs(times - expected) < 5 * np.sqrt(expected))


def test_trials_within_families_use_those_that_have_enough_classes(rng):
    labels = np.repeat(np.arange(12), 2)
    families = np.repeat([0, 1, 2], [4, 12, 8])  # 2, 6 and 4 classes
    for ways, used, possible in ((2, [0, 1, 2], 2), (4, [1, 2], 4), (20, [1], 6)):
        trials = few_shot.draw_trials(labels, ways, 1, 600, rng, families)
        assert trials.references.shape[1] == possible
        found, times = np.unique(families[trials.queries], return_counts=True)
        assert found.tolist() == used
        assert times.min() > 0.7 * 600 / len(used)  # families are as likely, whatever their size


@pytest.mark.parametrize(
    ("labels", "ways", "shots", "message"),
    [
        ([0, 0, 0], 5, 1, "Received: ways=5, .* and 1 such"),
        ([0, 1, 2], 2, 1, "2 images each .* and 0 such"),
        ([0, 0, 1, 1], 2, 2, "3 images each .* fewer shots"),
        ([0, 0, 1, 1], 1, 1, "ways=1"),
        ([0, 0, 1, 1], 2, 0, "0 references"),
    ],
)
def test_trials_that_cannot_be_drawn_are_an_error(labels, ways, shots, message, rng):
    with pytest.raises(ValueError, match=message):
        few_shot.draw_trials(np.array(labels), ways, shots, 10, rng)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("ways", [2, 3, 5, 7, 13, 20])
def test_a_constant_network_scores_one_in_n_and_a_perfect_one_all(ways, shots, rng):
    labels = np.repeat(np.arange(25), 5)
    trials = few_shot.draw_trials(labels, ways, shots, 500, rng)
    for constant in (np.full((125, 16), 0.1, np.float32), np.full((125, 3), 1e6)):
        distances = few_shot.trial_distances(constant, trials)
        found = few_shot.few_shot_accuracy(distances, trials.answers)
        assert found == pytest.approx(1 / ways, abs=1e-12)
    perfect = few_shot.trial_distances(np.eye(25, dtype=np.float32)[labels], trials)
    assert few_shot.few_shot_accuracy(perfect, trials.answers) == 1


def test_trial_distances_are_those_of_a_loop_over_prototypes(rng, monkeypatch):
    monkeypatch.setattr(verification, "CHUNK", 200)
    labels = np.repeat(np.arange(6), 5)
    embeddings = rng.normal(size=(30, 4)).astype(np.float32)
    trials = few_shot.draw_trials(labels, 4, 3, 40, rng)
    expected = [
        [
            np.linalg.norm(embeddings[query] - np.mean(embeddings[images], axis=0))
            for images in references
        ]
        for query, references, _ in zip(*trials, strict=True)
    ]
    found = few_shot.trial_distances(embeddings, trials)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    right = np.mean(np.argmin(expected, axis=1) == trials.answers)
    assert few_shot.few_shot_accuracy(found, trials.answers) == pytest.approx(right)

    def city_block(left, right):
        assert left.dtype == right.dtype == np.float32 and left.shape == right.shape
        return np.abs(left - right).sum(axis=1)

    expected = [
        [
            np.abs(embeddings[query] - np.mean(embeddings[images], axis=0)).sum()
            for images in references
        ]
        for query, references, _ in zip(*trials, strict=True)
    ]
    found = few_shot.trial_distances(embeddings, trials, city_block)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pixels_as_bytes_neither_wrap_nor_truncate(rng):
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


# Retrieval


def retrieval_by_loop(embeddings, labels):
    hits, precisions, nearest = [], [], []
    for query in range(len(labels)):
        others = [i for i in range(len(labels)) if i != query]
        distance = {i: np.linalg.norm(embeddings[i] - embeddings[query]) for i in others}
        others.sort(key=lambda i: (distance[i], labels[i] == labels[query]))  # noqa: B023
        right = [labels[i] == labels[query] for i in others]
        if any(right):
            hits.append(right.index(True))
            places = [place for place, hit in enumerate(right, 1) if hit]
            precisions.append(np.mean([n / place for n, place in enumerate(places, 1)]))
            nearest.append((labels[query], labels[others[0]]))
    return np.array(hits), np.mean(precisions), nearest


@pytest.mark.parametrize("grid", [False, True])
def test_retrieval_is_that_of_a_loop(grid, rng, monkeypatch):
    monkeypatch.setattr(verification, "CHUNK", 700)
    labels = rng.permutation(np.repeat(np.arange(14), [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]))
    embeddings = rng.normal(size=(60, 3)) + rng.normal(size=(14, 3))[labels]
    if grid:  # many ties
        embeddings = embeddings.round()
    found = few_shot.retrieval_scores(embeddings, labels)
    hits, mean_precision, nearest = retrieval_by_loop(embeddings, labels)
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean(hits < k))
    assert found["mean_average_precision"] == pytest.approx(mean_precision)
    assert found["num_queries"] == len(hits) == 58
    if not grid:
        for label, share in found["class_recall_at_1"].items():
            assert share == np.mean([b == label for a, b in nearest if a == label])
        for truth, wrong, times in found["most_confused"]:
            assert times == sum((a, b) == (truth, wrong) for a, b in nearest) and truth != wrong
    json.dumps(found)


def test_retrieval_with_a_learned_distance(rng, monkeypatch):
    labels = np.repeat(np.arange(10), 6)
    embeddings = rng.normal(size=(60, 3)) + rng.normal(size=(10, 3))[labels]
    plain = few_shot.retrieval_scores(embeddings, labels)
    warped = few_shot.retrieval_scores(embeddings, labels, grows_with_euclidean)
    assert warped == plain  # the same order, whatever the scale
    monkeypatch.setattr(few_shot, "MOST_LEARNED", 25)
    some = few_shot.retrieval_scores(embeddings, labels, grows_with_euclidean)
    assert some["num_queries"] == 25
    assert some == few_shot.retrieval_scores(embeddings, labels, grows_with_euclidean)
    assert abs(some["mean_average_precision"] - plain["mean_average_precision"]) < 0.15


def grows_with_euclidean(left, right):
    return 1 - np.exp(-np.linalg.norm(left - right, axis=1) / 10)


def test_retrieval_names_the_confused_classes_first():
    labels = np.array([0, 0, 1, 1, 2, 2, 2])
    embeddings = np.array([[0.0], [9.0], [0.1], [60.2], [50.0], [50.1], [60.0]])
    found = few_shot.retrieval_scores(embeddings, labels)
    assert found["most_confused"] == [[0, 1, 2], [1, 0, 1], [1, 2, 1], [2, 1, 1]]
    assert found["class_recall_at_1"] == {0: 0, 1: 0, 2: 2 / 3}


def test_retrieval_gives_a_constant_network_nothing_for_its_ties():
    labels = np.repeat(np.arange(20), 6)
    rng = np.random.default_rng(0)
    constant = np.tile(rng.normal(size=(1, 130)), (120, 1))
    constant *= 1 + 3e-15 * rng.normal(size=(120, 1))  # as other orders of summing leave it
    found = few_shot.retrieval_scores(constant, labels)
    assert found["recall_at_1"] == found["recall_at_10"] == 0
    perfect = few_shot.retrieval_scores(np.eye(20)[labels], labels)
    assert perfect["recall_at_1"] == perfect["mean_average_precision"] == 1
    with pytest.raises(ValueError, match="at least 2 images"):
        few_shot.retrieval_scores(np.eye(3), np.arange(3))
