"""An upper half is trained on kept maps and on what the pretrained network said of each image.

What callbacks find between two epochs.
"""

import concurrent.futures
import dataclasses
import shutil
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from configs import CONFIGS, Config
from networks import embedding
from networks.batch_losses import supervised_contrastive_loss
from pipeline.files import DataError
from pipeline.pairs import PairBatches
from train import train
from training import callbacks, feature_cache, fine_tuning
from training.feature_cache import FeatureCache
from training.fine_tuning import Distillation, lower_maps
from training.fit import compile_model


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_loss_on_maps_is_that_of_classes_and_of_the_teacher(weight):
    config = Config(sampling="classes", optimizer="sgd", learning_rate=0.1)
    maps, teacher, classes = keras.Input((4,)), keras.Input((3,)), keras.Input((), dtype="int32")
    embeddings = keras.layers.UnitNormalization()(keras.layers.Dense(3)(maps))
    encoder = keras.Model(maps, embeddings)
    distilled = Distillation(weight)(embeddings, teacher, classes)
    model = keras.Model([maps, teacher, classes], distilled)
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(8, 4)).astype("float32"), np.repeat(np.arange(4), 2)
    known = rng.normal(size=(8, 3)).astype("float32")
    genuine = labels[:, None] == labels[None]
    compile_model(model, config)
    for _ in range(2):
        before = encoder.predict(inputs, verbose=0)
        expected = supervised_contrastive_loss(labels, before, config.temperature)
        moved = np.square(before @ before.T - known @ known.T)
        expected += weight * moved[genuine & ~np.eye(8, dtype=bool)].mean()
        found = model.train_on_batch([inputs, known, labels], labels)[0]
        model.reset_metrics()
        assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture
def lower():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Conv2D(2, 3, strides=4)(images))


def make_dataset(folder, count):
    pixels = np.random.default_rng(0).integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
    return SimpleNamespace(
        pixels=pixels,
        index=SimpleNamespace(stamps=np.arange(1, count + 1, dtype=np.uint64)),
        splits=SimpleNamespace(train=np.arange(4), val=np.arange(4, count)),
        cache=SimpleNamespace(folder=folder / "decoded", ranges={}),
    )


def test_maps_are_kept_until_a_view_looks_different(lower, tmp_path, monkeypatch):
    dataset, config = make_dataset(tmp_path, 6), Config()

    def kept(config):
        views, pixels = lower_maps(lower, dataset, config), dataset.pixels
        expected = [lower.predict_on_batch(seen[[1, 4]]) for seen in (pixels, pixels[:, :, ::-1])]
        for maps, values in zip(views, expected, strict=False):
            np.testing.assert_allclose(maps([1, 4]), values, rtol=2e-3, atol=0.1)
        assert len(views) == fine_tuning.VIEWS
        return len([*tmp_path.glob("features/*/values")])

    assert kept(config) == 3
    assert kept(dataclasses.replace(config, learning_rate=0.1, epochs=3, temperature=0.2)) == 3
    assert kept(dataclasses.replace(config, rotate=5.0)) == 4
    assert kept(dataclasses.replace(config, seed=1)) == 5
    monkeypatch.setattr(feature_cache, "augment", lambda images, config, rng: images // 2)
    assert kept(config) == 6  # a kind of augmentation that nobody wrote down
    lower.set_weights([weights + 1 for weights in lower.get_weights()])
    assert kept(config) == 9
    dataset.cache.ranges["I"] = (0.0, 4095.0)  # decoded anew
    dataset.pixels[:] = 255 - dataset.pixels
    assert kept(config) == 12
    dataset.cache.ranges.clear()
    dataset.index.stamps += np.uint64(100)
    for share, views in ((1e-9, 1), (1.0, fine_tuning.VIEWS)):  # a longer limit adds the others
        monkeypatch.setattr(fine_tuning, "MAPS_SHARE", share)
        limited = dataclasses.replace(config, max_minutes=9.0)
        assert len(lower_maps(lower, dataset, limited)) == views


def test_maps_are_computed_of_new_images_alone_by_one_run_alone(lower, tmp_path, monkeypatch):
    embedded = []

    def embed(network, pixels, rows):
        embedded.append(len(rows))
        time.sleep(0.5)
        return embedding.embed(network, pixels, rows)

    def keep(count):
        return FeatureCache(lower, make_dataset(tmp_path, count), Config(), np.arange(count))

    monkeypatch.setattr(feature_cache, "embed", embed)
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        one, other = both.map(keep, (6, 6))
    np.testing.assert_array_equal(one(np.arange(6)), other(np.arange(6)))
    keep(7)
    assert embedded == [6, 1]


def test_maps_that_do_not_fit_on_the_disk_are_a_sentence(lower, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7))
    with pytest.raises(DataError, match="MB free. Make room .* another cache_dir"):
        FeatureCache(lower, make_dataset(tmp_path, 6), Config(), np.arange(6))


def test_breeds_that_imagenet_names_are_not_trained_on(real_data, tmp_path, capsys):
    few = {"max_classes": 10, "max_images_per_class": 8, "unseen_share": 0.0}
    few |= {"epochs": 1, "steps_per_epoch": 1, "max_minutes": None}
    few["data_dir"] = str(real_data / "dogs")
    here = {"cache_dir": str(tmp_path / "cache"), "runs_dir": str(tmp_path / "runs")}
    config = dataclasses.replace(CONFIGS["photographs"], **few, **here)
    assert train(config).history == {}
    assert "nothing is trained" in capsys.readouterr().out
    again = train(dataclasses.replace(config, distillation=0.0), verbose=0)
    assert len(again.history["loss"]) == 1


def test_neighbours_are_the_nearest_images_of_other_classes(build_index, monkeypatch):
    monkeypatch.setattr(callbacks, "NEAREST", 3)
    index = build_index([0, 0, 1, 1, 2, 0])
    pixels = np.uint8([10, 200, 14, 90, 120, 11]).reshape(-1, 1, 1, 1)
    inputs = keras.Input((1, 1, 1))
    encoder = keras.Model(inputs, keras.layers.Flatten()(inputs))
    batches = PairBatches(index, pixels, np.arange(6), Config())
    task = SimpleNamespace(encoder=encoder, pixels=pixels, batches=batches)
    found = callbacks.nearest_of_other_classes(task)
    nearest = {row: {*others} for row, *others in found.tolist()}
    of_two = {0: {2, 3, 4}, 1: {2, 3, 4}, 5: {2, 3, 4}, 2: {0, 5, 4}, 3: {4, 0, 5}, 4: {3, 1, 2}}
    assert nearest == of_two
