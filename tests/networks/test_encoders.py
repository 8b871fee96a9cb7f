"""Encoders against published numbers, layer arithmetic by hand, and Keras's own networks."""

import dataclasses

import cv2
import keras
import numpy as np
import pytest

from configs import APPLICATIONS, ENCODERS, SMALLEST_IMAGES, Config
from networks import encoders
from siamese_network_funcs import build_encoder, build_siamese_network

RNG = np.random.default_rng(0)


def bare(function, shape, embedding_dim):
    pixels = keras.Input(shape)
    return keras.Model(pixels, function(pixels, embedding_dim))


def test_configs_name_the_encoders_and_kerass_networks():
    assert all(callable(getattr(encoders, name)) for name in ENCODERS) and len(ENCODERS) == 10
    builders = {n for n in dir(keras.applications) if n[0].isupper()}
    assert set(APPLICATIONS) == builders


def test_koch_has_the_published_number_of_parameters():
    config = Config(
        encoder="koch", image_size=105, channels=1, embedding_dim=4096, unit_length=False,
        distance="l1", sampling="pairs", loss="binary_crossentropy",
    )  # fmt: skip
    network = build_siamese_network(build_encoder(config), config.distance)
    assert network.count_params() == 38_951_745


def test_leaf_cnn_has_the_published_layers():
    network = bare(encoders.leaf_cnn, (112, 112, 1), 50)
    # 112 -> 110 -> 55 -> 53 -> 26 -> 24 -> 12; 12 x 12 x 16 = 2304 values into 128, then 50.
    expected = (9 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 16 + 16)
    assert network.count_params() == expected + (2304 * 128 + 128) + (128 * 50 + 50)


def test_dogs_cnn_flattens_to_the_published_number_and_vgg16_to_its_last_map():
    network = bare(encoders.dogs_cnn, (256, 256, 3), 1)
    flat = next(n for n in network.layers if isinstance(n, keras.layers.Flatten))
    assert flat.output.shape == (None, 46_464)
    assert [n.units for n in network.layers if isinstance(n, keras.layers.Dense)] == [1024, 256, 1]
    assert bare(encoders.vgg16, (105, 105, 3), None).output_shape == (None, 3 * 3 * 512)


def test_signet_has_the_published_maps():
    network = bare(encoders.signet, (155, 220, 1), 128)
    sizes = [n.output.shape[1:] for n in network.layers if isinstance(n, keras.layers.MaxPooling2D)]
    assert sizes == [(72, 104, 96), (35, 51, 256), (17, 25, 256)]


@pytest.mark.parametrize(
    ("name", "channels"), [("compact", 1), ("leaf_cnn", 3), ("koch", 1), ("drawing", 3)]
)
def test_encoders_take_raw_pixels_and_give_unit_embeddings(name, channels):
    size = 80 if name == "koch" else 48
    config = Config(encoder=name, channels=channels, image_size=size, embedding_dim=16)
    encoder = build_encoder(config)
    pixels = RNG.integers(0, 256, size=(2, size, size, channels), dtype=np.uint8)
    embeddings = encoder.predict(pixels, verbose=0)
    assert embeddings.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-3)


def draw_ring(middle, axes, size=64):
    image = np.full((size, size), 250, np.uint8)
    cv2.ellipse(image, middle, axes, 0, 0, 300, 20, 3, cv2.LINE_AA)
    return image


def test_centring_samples_where_the_moments_of_the_ink_say():
    image = draw_ring((27, 36), (13, 9))
    ink = 250.0 - image
    rows, columns = np.mgrid[:64, :64]
    row, column = (np.average(places, weights=ink) for places in (rows, columns))
    down = np.average((rows - row) ** 2, weights=ink) + 1
    across = np.average((columns - column) ** 2, weights=ink) + 1
    step = np.sqrt(down + across) / (encoders.SPREAD * 48)
    steps = step * (across / down) ** 0.125, step * (down / across) ** 0.125
    warp = np.array([[steps[0], 0, column], [0, steps[1], row]])
    warp[:, 2] -= 23.5 * np.array(steps)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    expected = cv2.warpAffine(image.astype(np.float32), warp, (48, 48), flags=flags,
                              borderValue=250)  # fmt: skip
    sampled = np.array(encoders._centre(image[None, ..., None].astype(np.float32), 48))
    # OpenCV rounds places to 1/32 of a pixel.
    np.testing.assert_allclose(sampled[0, ..., 0], expected, atol=8)
    assert 4 * np.abs(sampled[0, ..., 0] - expected).mean() < 1


def test_centring_takes_place_and_size_away_and_keeps_the_ground():
    images = [draw_ring((32, 32), (16, 12)), draw_ring((25, 38), (16, 12))]
    images += [draw_ring((30, 34), (20, 15)), np.full((64, 64), 90, np.uint8)]
    pixels = np.stack(images)[..., None].astype(np.float32)
    one, moved, larger, blank = np.array(encoders._centre(pixels, 48))
    np.testing.assert_allclose(moved, one, atol=0.5)
    assert np.abs(larger - one).mean() < 0.5 * np.abs(np.roll(one, 2, axis=0) - one).mean()
    np.testing.assert_array_equal(blank, 90)


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
    (tmp_path / "bad.weights.h5").write_text("no weights")
    path = str(tmp_path / "bad.weights.h5")
    config = Config(encoder="MobileNetV2", image_size=32, weights=path)
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
    with pytest.raises(ValueError, match="another network|does not fit"):
        encoders.load_weights(build_encoder(other), other)


@pytest.mark.parametrize("encoder", SMALLEST_IMAGES)
def test_smallest_images_are_those_that_the_network_takes(encoder):
    config = Config(encoder=encoder, image_size=SMALLEST_IMAGES[encoder])
    build_encoder(config)
    with pytest.raises(ValueError, match=f"encoder='{encoder}'. Expected at least"):
        dataclasses.replace(config, image_size=config.image_size - 1)
    object.__setattr__(config, "image_size", config.image_size - 1)  # unchecked
    with pytest.raises(ValueError):
        build_encoder(config)
