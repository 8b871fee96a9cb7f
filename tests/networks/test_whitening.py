"""Whitening against its definition, and the head of any encoder fitted by it."""

import keras
import numpy as np
import pytest
from conftest import residual_network

from configs import Config
from networks import whitening
from networks.encoders import build_encoder

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_images", [15, 600])
def test_whitening_by_its_definition(num_images):
    """Within-class covariance with a ridge, its inverse square root, then principal directions."""
    labels = RNG.integers(5, size=num_images)
    mixing = RNG.normal(size=(20, 20))
    features = 3 * RNG.normal(size=(5, 20))[labels] + RNG.normal(size=(num_images, 20)) @ mixing
    classes = [features[labels == label] for label in np.unique(labels)]
    covariance = np.mean([np.cov(members.T) for members in classes if len(members) > 1], axis=0)
    ridge = whitening.RIDGE * np.trace(covariance) / 20
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(20))
    expected = (features - features.mean(axis=0)) @ (vectors / np.sqrt(values) @ vectors.T)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    main = np.linalg.svd(unit, full_matrices=False)[2][:6].T

    matrix, bias = whitening.fit_whitening(features, labels, 6)
    found = features @ matrix + bias
    assert found.shape == (num_images, 6)
    np.testing.assert_allclose(np.abs(found), np.abs(expected @ main), atol=2e-3)
    matrix, bias = whitening.fit_whitening(features[:, :4], labels, 7)  # 3 that are not there
    assert matrix.shape == (4, 7) and not matrix[:, 4:].any() and not bias[4:].any()


@pytest.mark.parametrize(
    ("that_tells", "last_is_classes", "expected"),
    [(0, False, [1, 1, 1]), (0, True, [1, 1, 0]), (2, True, [1, 16, 256])],
)
def test_the_map_that_tells_new_classes_apart_weighs_most(
    rng, that_tells, last_is_classes, expected
):
    """One of three maps knows the classes, the others hold noise that is larger."""
    labels = np.arange(120) % 12
    maps = [4 * rng.normal(size=(120, 5)) for _ in range(3)]
    maps[that_tells] = rng.normal(size=(12, 5))[labels] + 0.5 * rng.normal(size=(120, 5))
    joined = np.concatenate(maps, axis=1)
    weights = whitening.choose_weights(joined, labels, [5, 5, 5], 4, last_is_classes)
    np.testing.assert_array_equal(weights, np.repeat(expected, 5))


def test_class_probabilities_are_taken_where_they_tell_new_classes_apart():
    encoder = build_encoder(Config(encoder="efficientnet_lite0", image_size=32, embedding_dim=8))
    labels, features = np.arange(120) % 12, RNG.normal(size=(120, 2984))
    assert not whitening.fit_head(encoder, features, labels)
    assert not encoder.get_layer("head").get_weights()[0][-1000:].any()
    features[:, -1000:] = RNG.normal(size=(12, 1000))[labels]
    assert whitening.fit_head(encoder, features, labels)
    assert encoder.get_layer("head").get_weights()[0][-1000:].any()


@pytest.mark.parametrize("name", ["compact", "drawing", "MobileNetV3Small", "residual"])
def test_any_encoder_is_whitened_saved_and_loaded_with_keras_alone(name, tmp_path):
    own = name == "residual"
    config = Config(encoder="compact" if own else name, image_size=32, embedding_dim=6)
    encoder = residual_network(32, 6) if own else build_encoder(config)
    pixels = RNG.integers(0, 256, (24, 32, 32, 3)).astype(np.float32)
    features = whitening.features_of(encoder).predict(pixels, verbose=0)
    labels = np.arange(24) % 4
    whitening.fit_head(encoder, features, labels)
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    matrix, bias = whitening.fit_whitening(features, labels, 6)
    expected = features @ matrix + bias  # four classes are too few to weigh maps
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), expected, atol=2e-3)
