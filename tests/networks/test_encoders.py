"""Encoders against published numbers, layer arithmetic by hand, and Keras's own networks.

Embedding by equal batches, the next one read meanwhile, against the network asked at once.
"""

import dataclasses

import cv2
import keras
import numpy as np
import pytest

from configs import APPLICATIONS, ENCODERS, SMALLEST_IMAGES, Config
from networks import centring, embedding, encoders
from networks.encoders import build_encoder

RNG = np.random.default_rng(0)


def test_configs_name_the_encoders_and_kerass_networks():
    assert all(callable(getattr(encoders, name)) for name in ENCODERS) and len(ENCODERS) == 10
    builders = {n for n in dir(keras.applications) if n[0].isupper()}
    assert set(APPLICATIONS) == builders


def dense(given, units):
    return (given + 1) * units


def convolution(size, given, filters):
    return dense(size * size * given, filters)


PUBLISHED = {  # image, embedding_dim, parameters
    # 112 -> 110 -> 55 -> 53 -> 26 -> 24 -> 12
    "leaf_cnn": ((112, 112, 1), 50, [
        convolution(3, 1, 16), convolution(3, 16, 32), convolution(3, 32, 16),
        dense(12 * 12 * 16, 128), dense(128, 50),
    ]),
    "koch": ((105, 105, 1), 4096, [38_951_745 - dense(4096, 1)]),  # with its distance
    "vgg16": ((105, 105, 3), None, [14_714_688]),
    "dogs_cnn": ((256, 256, 3), 1, [
        convolution(11, 3, 256), convolution(5, 256, 256), convolution(3, 256, 384),
        dense(46_464, 1024), dense(1024, 256), dense(256, 1),
    ]),
    # Maps of 72 x 104, 35 x 51 and 17 x 25; four numbers a channel of batch normalisation.
    "signet": ((155, 220, 1), 128, [
        convolution(11, 1, 96) + 4 * 96, convolution(5, 96, 256) + 4 * 256,
        convolution(3, 256, 384), convolution(3, 384, 256),
        dense(17 * 25 * 256, 1024), dense(1024, 128),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_number_of_parameters(name):
    shape, embedding_dim, parameters = PUBLISHED[name]
    pixels = keras.Input(shape)
    network = keras.Model(pixels, getattr(encoders, name)(pixels, embedding_dim))
    assert network.count_params() == sum(parameters)


def test_centring_samples_where_the_moments_of_the_ink_say():
    image = np.full((64, 64), 250, np.uint8)
    cv2.ellipse(image, (27, 36), (13, 9), 0, 0, 300, 20, 3, cv2.LINE_AA)
    ink = 250.0 - image
    rows, columns = np.mgrid[:64, :64]
    row, column = (np.average(places, weights=ink) for places in (rows, columns))
    down = np.average((rows - row) ** 2, weights=ink) + 1
    across = np.average((columns - column) ** 2, weights=ink) + 1
    step = np.sqrt(down + across) / (centring.SPREAD * 48)
    steps = step * (across / down) ** 0.125, step * (down / across) ** 0.125
    warp = np.array([[steps[0], 0, column], [0, steps[1], row]])
    warp[:, 2] -= 23.5 * np.array(steps)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    expected = cv2.warpAffine(image.astype(np.float32), warp, (48, 48), flags=flags,
                              borderValue=250)  # fmt: skip
    both = np.stack([image, np.full((64, 64), 90)])[..., None].astype(np.float32)
    sampled, blank = np.array(centring.centre(both, 48))[..., 0]
    # OpenCV rounds places to 1/32 of a pixel.
    np.testing.assert_allclose(sampled, expected, atol=8)
    assert 4 * np.abs(sampled - expected).mean() < 1 and (blank == 90).all()


def test_parts_are_means_of_eight_parts_of_the_picture():
    maps = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype("float32")
    inputs = keras.Input(maps.shape[1:])
    found = keras.Model(inputs, encoders._parts(inputs)).predict(maps, verbose=0)
    rows, columns = (slice(0, 3), slice(3, 5)), (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7))
    means = [maps[:, row, column].mean(axis=(1, 2)) for row in rows for column in columns]
    np.testing.assert_allclose(found, np.concatenate(means, axis=1), atol=1e-6)


@pytest.mark.slow
def test_kerass_network_preprocesses_raw_pixels_as_keras_says(tmp_path):
    """Weights from a file: the backbone equals Keras's network after Keras's preprocessing."""
    network = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    network.save_weights(path := tmp_path / "mobile.weights.h5")
    config = Config(encoder="MobileNetV2", image_size=64, weights=str(tmp_path / "x"))
    encoder = build_encoder(config)
    encoders.load_weights(encoder, dataclasses.replace(config, weights=str(path)))
    pixels = RNG.integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    prepared = keras.applications.mobilenet_v2.preprocess_input(pixels.copy())
    backbone = encoder.get_layer("backbone")
    np.testing.assert_allclose(
        backbone.predict(pixels, verbose=0), network.predict(prepared, verbose=0), atol=1e-4
    )


def test_weights_that_do_not_fit_are_told_in_a_sentence(tmp_path):
    (path := tmp_path / "bad.weights.h5").write_text("no weights")
    config = Config(encoder="MobileNetV2", image_size=32, weights=str(path))
    with pytest.raises(ValueError, match="MobileNetV2 cannot be filled.*Expected 'imagenet'"):
        encoders.load_weights(build_encoder(config), config)


@pytest.mark.parametrize("name", ["compact", "spatial"])
def test_weights_of_a_run(name, tmp_path):
    """Another size: all but the head of a network of fixed size is taken over."""
    config = Config(encoder=name, image_size=16, embedding_dim=4)
    trained = build_encoder(config)
    trained.save(tmp_path / "encoder.keras")
    larger = dataclasses.replace(config, image_size=32, weights=str(tmp_path))
    encoder = build_encoder(larger)
    filled = encoders.load_weights(encoder, larger)
    assert filled == (name == "compact")
    pairs = zip(trained.weights, encoder.weights, strict=True)
    for one, other in [*pairs][: None if filled else -2]:
        np.testing.assert_array_equal(one, other)
    other = dataclasses.replace(larger, encoder={"compact": "spatial", "spatial": "compact"}[name])
    with pytest.raises(ValueError, match="holds another network"):
        encoders.load_weights(build_encoder(other), other)


@pytest.mark.parametrize("encoder", SMALLEST_IMAGES)
def test_raw_pixels_of_the_smallest_size_give_unit_embeddings(encoder):
    config = Config(encoder=encoder, image_size=SMALLEST_IMAGES[encoder], embedding_dim=16)
    network = build_encoder(config)
    if encoder in ENCODERS:  # Keras's are large
        pixels = RNG.integers(256, size=(2, *config.image_shape), dtype=np.uint8)
        embeddings = network.predict(pixels, verbose=0)
        assert embeddings.shape == (2, 16) or encoder == "vgg16"
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-3)
    with pytest.raises(ValueError, match=f"encoder='{encoder}'. Expected at least"):
        dataclasses.replace(config, image_size=config.image_size - 1)
    object.__setattr__(config, "image_size", config.image_size - 1)  # unchecked
    with pytest.raises(ValueError):
        build_encoder(config)


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_batches_agree_with_the_network_asked_at_once(monkeypatch, rng, count):
    monkeypatch.setattr(embedding, "EMBED_BATCH", 4)
    encoder = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten()])
    pixels, sizes = rng.integers(256, size=(20, 6, 5, 3), dtype=np.uint8), set()
    rows = rng.permutation(20)[:count]

    def read(rows):
        sizes.add(len(rows))
        return pixels[rows]

    for given in (pixels, read):
        found = embedding.embed(encoder, given, rows)
        assert found.dtype == np.float32 and (found == pixels[rows].reshape(count, -1)).all()
    assert sizes == {min(count, 4)}
    with pytest.raises(IndexError):  # what cannot be read is raised
        embedding.embed(encoder, pixels, rows + 20)


def test_a_backend_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "nowhere")
    with pytest.raises(ValueError, match="KERAS_BACKEND=nowhere: no such package. Expected"):
        embedding.start_keras()
