"""An upper half is trained on kept maps and on what the pretrained network said of each image."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from configs import CONFIGS, Config
from networks.losses import supervised_contrastive_loss
from train import train
from training import fine_tuning
from training.fine_tuning import Distillation, LowerMaps
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


def test_maps_are_kept_until_the_views_look_different(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    dataset = SimpleNamespace(
        pixels=pixels,
        index=SimpleNamespace(stamps=np.arange(6, dtype=np.uint64)),
        splits=SimpleNamespace(train=np.arange(4), val=np.arange(4, 6)),
        cache=SimpleNamespace(folder=tmp_path / "decoded"),
    )
    images = keras.Input((8, 8, 3))
    lower = keras.Model(images, keras.layers.Conv2D(2, 3, strides=4)(images))
    config = Config()

    def kept(config):
        maps = LowerMaps(lower, dataset, config)
        expected = [lower.predict_on_batch(seen[[1, 4]]) for seen in (pixels, pixels[:, :, ::-1])]
        for number, values in enumerate(expected):
            np.testing.assert_allclose(maps([1, 4], number), values, rtol=2e-3, atol=0.1)
        assert len(maps.maps) == fine_tuning.VIEWS
        return len([*tmp_path.glob("maps/*.npy")]) / fine_tuning.VIEWS

    assert kept(config) == 1
    assert kept(dataclasses.replace(config, learning_rate=0.1, epochs=3, temperature=0.2)) == 1
    assert kept(dataclasses.replace(config, rotate=5.0)) == 2
    assert kept(dataclasses.replace(config, seed=1)) == 3
    monkeypatch.setattr(fine_tuning, "augment", lambda images, config, rng: images // 2)
    assert kept(config) == 4  # a kind of augmentation that nobody wrote down
    lower.set_weights([weights + 1 for weights in lower.get_weights()])
    assert kept(config) == 5
    dataset.pixels[:] = pixels = 255 - pixels
    assert kept(config) == 6
    dataset.pixels[:] = 7
    for share, views in ((1e-9, 1), (1.0, fine_tuning.VIEWS)):  # a longer limit adds the others
        monkeypatch.setattr(fine_tuning, "MAPS_SHARE", share)
        maps = LowerMaps(lower, dataset, dataclasses.replace(config, max_minutes=9.0))
        assert len(maps.maps) == views


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
