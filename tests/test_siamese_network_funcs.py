"""The network's functions against double loops and hand values."""

import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import siamese_network_funcs as funcs
from configs import Config
from networks.batch_losses import (
    batch_contrastive_loss,
    batch_triplet_loss,
    supervised_contrastive_loss,
)

RNG = np.random.default_rng(0)
# Classes of two and three images, and one without a partner, which is a negative only.
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 99])
EMBEDDINGS = RNG.normal(size=(12, 5)).astype(np.float32)
DISTANCES = [[math.dist(one, other) for other in EMBEDDINGS] for one in EMBEDDINGS]


def partners_and_others(i):
    others = [j for j in range(12) if j != i]
    return [j for j in others if LABELS[j] == LABELS[i]], others


def contrastive_by_loops(margin):
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    genuine = [DISTANCES[i][j] for i, j in pairs if LABELS[i] == LABELS[j]]
    impostor = [DISTANCES[i][j] for i, j in pairs if LABELS[i] != LABELS[j]]
    inside = [(margin - distance) ** 2 for distance in impostor if distance < margin]
    return np.mean(np.square(genuine)) + np.mean(inside)


def supervised_contrastive_by_loops(temperature):
    directions, costs = [one / math.hypot(*one) for one in EMBEDDINGS], []
    for i in range(12):
        partners, others = partners_and_others(i)
        shares = {j: math.exp(directions[i] @ directions[j] / temperature) for j in others}
        if partners:
            total = sum(shares.values())
            costs.append(-np.mean([math.log(shares[j] / total) for j in partners]))
    return np.mean(costs)


def triplet_by_loops(margin, triplet):
    num_positives, num_negatives = {"hardest": (1, 1), "1+2": (1, 2), "2+1": (2, 1)}[triplet]
    hinges = []
    for i in range(12):
        partners, others = partners_and_others(i)
        positives = sorted((DISTANCES[i][j] for j in partners), reverse=True)[:num_positives]
        negatives = sorted(DISTANCES[i][j] for j in {*others} - {*partners})[:num_negatives]
        hinges += [max(0, near + margin - far) for near in positives for far in negatives]
    return np.mean(hinges)


CASES = [
    (batch_contrastive_loss, contrastive_by_loops, {"margin": 3.0}),
    (
        supervised_contrastive_loss,
        supervised_contrastive_by_loops,
        {"temperature": 0.2},
    ),
]
CASES += [
    (batch_triplet_loss, triplet_by_loops, {"margin": 0.7, "triplet": kind})
    for kind in ("hardest", "1+2", "2+1")
]


@pytest.mark.parametrize(("loss", "by_loops", "settings"), CASES)
def test_a_loss_of_a_batch_equals_loops(loss, by_loops, settings):
    found = float(loss(LABELS, EMBEDDINGS, **settings))
    assert found == pytest.approx(by_loops(**settings), rel=1e-4)


def test_contrastive_loss_by_hand():
    same, distance = np.array([[1.0], [0.0], [0.0]]), np.array([[0.5], [0.2], [1.7]])
    # (0.5^2 + (1 - 0.2)^2 + 0) / 3
    assert float(funcs.contrastive_loss(same, distance)) == pytest.approx((0.25 + 0.64) / 3)
    # Twice the margin: (0.25 + 1.8^2 + 0.3^2) / 3
    loss = funcs.contrastive_loss(same, distance, margin=2.0)
    assert float(loss) == pytest.approx((0.25 + 3.24 + 0.09) / 3)


def test_binary_crossentropy_by_hand():
    """A learned distance is the probability of two classes."""
    same, distance = np.array([[1.0], [0.0]]), np.array([[0.2], [0.9]], np.float32)
    loss = float(funcs.binary_crossentropy_loss(same, distance))
    assert loss == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2, rel=1e-5)


def test_accuracy_weighs_both_kinds_the_same():
    same = np.array([1, 1, 0, 0, 0, 0])
    distance = np.array([0.1, 0.9, 0.2, 0.8, 0.7, 0.6])
    assert float(funcs.accuracy(same, distance, 0.5)) == pytest.approx((1 / 2 + 3 / 4) / 2)
    i, j = np.triu_indices(12, 1)
    expected = float(funcs.accuracy(LABELS[i] == LABELS[j], np.array(DISTANCES)[i, j], 3.0))
    assert 0 < expected < 1
    assert float(funcs.batch_accuracy(LABELS, EMBEDDINGS, 3.0)) == pytest.approx(expected)


def test_distances_by_hand():
    expected = [[DISTANCES[i][i + 1]] for i in range(11)]
    found = funcs.euclidean_distance([EMBEDDINGS[:-1], EMBEDDINGS[1:]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    left, right = np.float32([[3, 0], [1, 1]]), np.float32([[0, 2], [2, 2]])
    np.testing.assert_allclose(funcs.cosine_distance([left, right]), [[1], [0]], atol=1e-6)


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "l1", "l1_512"])
def test_distance_function_agrees_with_the_two_input_model_after_loading(kind, tmp_path):
    encoder = funcs.build_encoder(Config(image_size=32, embedding_dim=8))
    model = funcs.build_siamese_network(encoder, kind)
    left, right = RNG.integers(0, 256, (2, 3, 32, 32, 3)).astype(np.float32)
    expected = model.predict([left, right], verbose=0)[:, 0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    sides = [encoder.predict(side, verbose=0) for side in (left, right)]
    function = funcs.distance_function(loaded)
    assert (function is None) == (kind == "euclidean")
    distances = function(*sides) if function else np.linalg.norm(sides[0] - sides[1], axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_saved_models_load_in_a_new_process(tmp_path):
    encoder = funcs.build_encoder(Config(image_size=32, embedding_dim=8))
    encoder.save(tmp_path / "encoder.keras")
    funcs.build_siamese_network(encoder).save(tmp_path / "model.keras")
    script = f"""
import keras
keras.saving.load_model(r"{tmp_path / "encoder.keras"}")  # plain Keras is enough
import siamese_network_funcs
keras.saving.load_model(r"{tmp_path / "model.keras"}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
