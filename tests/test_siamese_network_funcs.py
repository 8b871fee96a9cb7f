"""The network's functions against double loops and hand values."""

import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import siamese_network_funcs as funcs
from configs import Config
from networks import losses

RNG = np.random.default_rng(0)


def random_batch(num_classes=4, per_class=3, dim=5):
    labels = np.repeat(np.arange(num_classes), per_class)
    return labels, RNG.normal(size=(len(labels), dim)).astype(np.float32)


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_euclidean_distance_is_the_norm_of_the_difference():
    left, right = RNG.normal(size=(2, 7, 5)).astype(np.float32)
    expected = [[math.dist(a, b)] for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(funcs.euclidean_distance([left, right]), expected, rtol=1e-5)


def test_contrastive_loss_by_hand():
    same = np.array([[1.0], [0.0], [0.0]])
    distance = np.array([[0.5], [0.2], [1.7]])
    # (0.5^2 + (1 - 0.2)^2 + 0) / 3
    assert float(funcs.contrastive_loss(same, distance)) == pytest.approx((0.25 + 0.64) / 3)
    # Twice the margin: (0.25 + 1.8^2 + 0.3^2) / 3
    loss = funcs.contrastive_loss(same, distance, margin=2.0)
    assert float(loss) == pytest.approx((0.25 + 3.24 + 0.09) / 3)


def test_batch_contrastive_loss_equals_a_double_loop():
    labels, embeddings = random_batch()
    genuine, impostor = [], []
    for i in range(len(labels)):
        for j in range(len(labels)):
            distance = math.dist(embeddings[i], embeddings[j])
            if i != j and labels[i] == labels[j]:
                genuine.append(distance**2)
            elif labels[i] != labels[j] and distance < 3.0:
                impostor.append((3.0 - distance) ** 2)
    expected = np.mean(genuine) + np.mean(impostor)
    loss = losses.batch_contrastive_loss(labels, embeddings, margin=3.0)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_supervised_contrastive_loss_equals_a_double_loop():
    labels, embeddings = random_batch()
    labels = np.append(labels, 99)  # an image without partner is a negative only
    embeddings = np.vstack([embeddings, RNG.normal(size=(1, 5)).astype(np.float32)])
    directions, costs = unit(embeddings), []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        partners = [j for j in others if labels[j] == labels[i]]
        if not partners:
            continue
        total = sum(math.exp(directions[i] @ directions[j] / 0.2) for j in others)
        shares = [math.exp(directions[i] @ directions[j] / 0.2) / total for j in partners]
        costs.append(-np.mean(np.log(shares)))
    loss = losses.supervised_contrastive_loss(labels, embeddings, temperature=0.2)
    assert float(loss) == pytest.approx(np.mean(costs), rel=1e-4)


def triplet_by_loops(labels, embeddings, margin, triplet):
    hinges = []
    for i in range(len(labels)):
        distances = [math.dist(embeddings[i], other) for other in embeddings]
        others = [j for j in range(len(labels)) if j != i]
        positives = sorted((distances[j] for j in others if labels[j] == labels[i]), reverse=True)
        negatives = sorted(distances[j] for j in others if labels[j] != labels[i])
        num_positives, num_negatives = {"hardest": (1, 1), "1+2": (1, 2), "2+1": (2, 1)}[triplet]
        for positive in positives[:num_positives]:
            for negative in negatives[:num_negatives]:
                hinges.append(max(0.0, positive + margin - negative))
    return np.mean(hinges)


@pytest.mark.parametrize("triplet", ["hardest", "1+2", "2+1"])
def test_batch_triplet_loss_equals_a_loop(triplet):
    labels, embeddings = random_batch()
    labels, embeddings = labels[:-1], embeddings[:-1]  # one class smaller than the others
    loss = losses.batch_triplet_loss(labels, embeddings, margin=0.7, triplet=triplet)
    expected = triplet_by_loops(labels, embeddings, 0.7, triplet)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_accuracy_at_a_threshold_weighs_both_kinds_the_same():
    same = np.array([1, 1, 0, 0, 0, 0])
    distance = np.array([0.1, 0.9, 0.2, 0.8, 0.7, 0.6])
    assert float(funcs.accuracy(same, distance, 0.5)) == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_batch_accuracy_equals_accuracy_over_all_pairs():
    labels, embeddings = random_batch()
    i, j = np.triu_indices(len(labels), 1)
    distance = np.linalg.norm(embeddings[i] - embeddings[j], axis=1)
    expected = float(funcs.accuracy((labels[i] == labels[j]).astype("float32"), distance))
    assert float(funcs.batch_accuracy(labels, embeddings)) == pytest.approx(expected, abs=1e-5)


def test_cosine_distance_by_hand():
    left, right = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 2.0], [2.0, 2.0]])
    result = funcs.cosine_distance([left.astype("float32"), right.astype("float32")])
    np.testing.assert_allclose(result, [[1.0], [0.0]], atol=1e-6)


def test_binary_crossentropy_by_hand():
    """A learned distance is the probability of two classes."""
    same, distance = np.array([[1.0], [0.0]]), np.array([[0.2], [0.9]], np.float32)
    loss = float(funcs.binary_crossentropy_loss(same, distance))
    assert loss == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2, rel=1e-5)


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


def test_saved_model_loads_in_safe_mode_in_a_new_process(tmp_path):
    encoder = funcs.build_encoder(Config(image_size=32, embedding_dim=8))
    encoder.save(tmp_path / "encoder.keras")
    funcs.build_siamese_network(encoder).save(tmp_path / "model.keras")
    script = f"""
import keras, numpy as np
encoder = keras.saving.load_model(r"{tmp_path / "encoder.keras"}")  # plain Keras is enough
import siamese_network_funcs
model = keras.saving.load_model(r"{tmp_path / "model.keras"}")
pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3)).astype("float32")
left, right = map(encoder.predict, pixels)
expected = np.linalg.norm(left - right, axis=1, keepdims=True)
np.testing.assert_allclose(model.predict([*pixels]), expected, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
