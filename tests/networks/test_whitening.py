"""Whitening against its definition, and the widened encoder against its parts."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from configs import Config
from networks import whitening
from siamese_network_funcs import build_encoder

RNG = np.random.default_rng(0)
LENGTH = np.sqrt(1 + 0.7**2)  # of whitened features and trained embedding together


def test_whitened_variation_within_classes_is_equal_in_all_directions(monkeypatch):
    monkeypatch.setattr(whitening, "RIDGE", 0.0)
    labels = np.repeat(np.arange(40), RNG.integers(3, 30, 40))
    spread = RNG.normal(size=(6, 6))  # the same directions vary in every class
    features = 5 * RNG.normal(size=(40, 6))[labels] + RNG.normal(size=(len(labels), 6)) @ spread
    mean, matrix = whitening.fit_whitening(features, labels)
    whitened = (features - mean) @ matrix
    covariances = [np.cov(whitened[labels == label].T) for label in range(40)]
    np.testing.assert_allclose(np.mean(covariances, axis=0), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize(
    "name, size, dim, last",
    [
        *(("compact", 48, 16, last) for last in (False, True)),
        *(("spatial", size, dim, False) for size, dim in ((48, 4), (48, 16), (96, 16))),
    ],
)
@pytest.mark.parametrize("most", [19, 1024])
def test_widened_encoder_joins_whitened_features(
    name, size, dim, last, most, tmp_path, monkeypatch
):
    monkeypatch.setattr(whitening, "MOST_NUMBERS", most)
    encoder = build_encoder(Config(image_size=size, embedding_dim=dim, encoder=name))
    pixels = RNG.integers(0, 256, (24, size, size, 3), dtype=np.uint8)
    dataset = SimpleNamespace(
        pixels=pixels,
        index=SimpleNamespace(labels=np.repeat(np.arange(6), 4)),
        splits=SimpleNamespace(train=np.arange(20), val=np.arange(20, 24)),
    )
    wide = whitening.widen_encoder(encoder, dataset, seed=0, last=last)
    embeddings = wide.predict(pixels, verbose=0)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-4)
    trained = encoder.predict(pixels, verbose=0)
    np.testing.assert_allclose(embeddings[:, -dim:] * LENGTH, 0.7 * trained, atol=1e-4)
    wide.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), embeddings, atol=1e-5)

    features = trained  # of five classes: more than four numbers
    outputs = [layer.output for layer in loaded.layers if whitening._is_rectified(layer)][-3:]
    maps = keras.Model(loaded.input, outputs).predict(pixels, verbose=0)
    if name == "spatial" and dim > 5:
        features = maps[-1]
        if size == 96:  # every two places along a side
            features = features.reshape(24, 3, 2, 3, 2, -1).mean(axis=(2, 4))
        features = features.reshape(24, -1)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    if name == "compact":
        parts = []
        for number, places in enumerate(maps if last else maps[:2]):
            side = places.shape[1]
            at = (np.arange(side) + 0.5) / side * 2 - 1
            weights = np.exp(-2 * (at[:, None] ** 2 + at**2)).ravel()  # of width a half
            values = places.reshape(24, side * side, -1)
            mean = np.average(values, axis=1, weights=weights)
            if number == 0:
                of_one = [np.cov(v.T, aweights=weights, bias=True) for v in values]
                parts += [np.array([matrix[np.triu_indices(64)] for matrix in of_one])]
            spread = np.average((values - mean[:, None]) ** 2, axis=1, weights=weights)
            parts += [mean, np.sqrt(spread)]
        parts = [np.sign(part) * np.abs(part) ** 0.5 for part in parts]
        parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        features = np.concatenate(parts, axis=1)
    mean, matrix = whitening.fit_whitening(features[:20], dataset.index.labels[:20])
    whitened = (features[:20] - mean) @ matrix
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    found = embeddings[:20, :-dim] * LENGTH
    assert found.shape[1] == min(features.shape[1], most)
    if features.shape[1] <= most:
        np.testing.assert_allclose(found, whitened, atol=2e-2)
    else:  # all directions of the training images are kept, turned as a whole
        np.testing.assert_allclose(found @ found.T, whitened @ whitened.T, atol=2e-2)


@pytest.mark.parametrize("num_values", [6, 60])
def test_main_directions_hold_most_variation(num_values):
    values = RNG.normal(size=(num_values, 12)) * np.linspace(1, 3, 12) + 5
    directions = whitening.main_directions(values, 8, seed=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-5)
    kept = np.var((values - values.mean(axis=0)) @ directions, axis=0).sum()
    largest = np.linalg.eigvalsh(np.cov(values.T, bias=True))[-8:].sum()
    np.testing.assert_allclose(kept, largest, rtol=1e-4)


def test_few_images_are_whitened_as_by_their_covariance():
    features, labels = RNG.normal(size=(12, 40)), np.repeat(np.arange(4), 3)
    mean, matrix = whitening.fit_whitening(features, labels)
    within = features - np.repeat(features.reshape(4, 3, 40).mean(axis=1), 3, axis=0)
    covariance = within.T @ within / (3 - 1) / 4
    expected = np.linalg.inv(covariance + np.eye(40) * np.trace(covariance) / 40)
    np.testing.assert_allclose(matrix @ matrix.T, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(mean, features.mean(axis=0), atol=1e-5)


def test_half_turn_makes_no_difference_to_an_encoder_that_averages_over_it(tmp_path):
    encoder = build_encoder(Config(image_size=32, embedding_dim=8))
    pixels = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    dataset = SimpleNamespace(
        pixels=pixels,
        index=SimpleNamespace(labels=np.repeat(np.arange(3), 4)),
        splits=SimpleNamespace(train=np.arange(12), val=np.empty(0, int)),
    )
    one = whitening.widen_encoder(encoder, dataset, seed=0).predict(pixels, verbose=0)
    both = whitening.widen_encoder(encoder, dataset, seed=0, half_turn=True)
    both.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    upright = loaded.predict(pixels, verbose=0, batch_size=5)
    turned = loaded.predict(pixels[:, ::-1, ::-1], verbose=0)
    np.testing.assert_allclose(upright, turned, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(upright, axis=1), 1, rtol=1e-4)
    other = whitening.widen_encoder(encoder, dataset, seed=0).predict(
        pixels[:, ::-1, ::-1], verbose=0
    )
    mean = one + other
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(upright, mean, atol=1e-5)


def test_images_that_clearly_show_a_trained_class_get_its_share():
    keras.utils.set_random_seed(2)
    encoder = build_encoder(Config(image_size=32, embedding_dim=8))
    rng = np.random.default_rng(0)
    templates = rng.integers(0, 256, (4, 1, 32, 32, 3))
    noise = rng.normal(0, 30, (4, 9, 32, 32, 3))
    pixels = (templates + noise).clip(0, 255).astype(np.uint8).reshape(36, 32, 32, 3)
    labels = np.repeat([5, 6, 7, 8], 9)
    places = np.arange(27).reshape(3, 9)  # of class 8 there is none to train on
    dataset = SimpleNamespace(
        pixels=pixels,
        index=SimpleNamespace(labels=labels),
        splits=SimpleNamespace(train=places[:, :6].ravel(), val=np.append(places[:, 6:8], 35)),
    )
    finished = whitening.widen_encoder(encoder, dataset, seed=0)
    wide = finished.predict(pixels, verbose=0)
    whitened, trained, found = np.split(wide, [wide.shape[1] - 11, wide.shape[1] - 3], axis=1)
    found = found / np.linalg.norm(whitened, axis=1, keepdims=True)

    def near(values):  # cosines with the mean of each class
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
        means = np.stack([values[row[:6]].mean(axis=0) for row in places])
        return values @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T

    chances = np.exp(33 * near(trained))
    chances /= chances.sum(axis=1, keepdims=True)
    signs = np.stack([(near(whitened) * chances).sum(axis=1), near(trained).max(axis=1)])
    checked = places[:, 6:8].ravel()
    right = np.mean(chances[checked].argmax(axis=1) == np.repeat(np.arange(3), 2))
    limits = np.quantile(signs[:, checked], 0.15, axis=1)
    sure = 1 / (1 + np.exp(-(signs - limits[:, None]) / 0.03))
    expected = 0.7 * right * np.sqrt(chances * sure.prod(axis=0)[:, None])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths[places[:, 8]].mean() > lengths[27:].mean()  # those of class 8

    stranger = whitening.as_strangers(wide, finished)
    assert not stranger[:, -3:].any()
    lengths = np.linalg.norm(wide[:, :-3], axis=1, keepdims=True)
    np.testing.assert_allclose(stranger[:, :-3], wide[:, :-3] / lengths, atol=1e-6)
    assert whitening.as_strangers(trained, encoder) is trained
