"""`train` from Python: arrays, paths, one's own network and loss, silence, errors as exceptions."""

import keras
import numpy as np
import pytest
from PIL import Image

import train as command
from configs import Config
from prepare_data import load_data
from train import train
from training.validation import TrainingFailed

SMALL = {"image_size": 16, "epochs": 2, "steps_per_epoch": 4, "precision": "float32"}
SMALL |= {"pairs_per_batch": 8, "embedding_dim": 8}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """`(images, labels)`: six classes of ten, noise about a colour each."""
    monkeypatch.chdir(tmp_path)
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 10)
    colors = rng.integers(40, 215, (6, 1, 1, 3))[labels]
    noise = rng.normal(0, 30, (60, 16, 16, 3))
    return (colors + noise).clip(0, 255).astype(np.uint8), labels


def skipping():
    """A network with a skip connection that nobody here has built."""
    pixels = keras.Input((16, 16, 3))
    first = keras.layers.Conv2D(4, 3, padding="same")(pixels / 255)
    second = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(first)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.add([first, second]))
    return keras.Model(pixels, keras.layers.Dense(5)(pooled), name="skipping")


def test_own_network_and_loss_on_arrays_in_silence(given, capsys):
    class Squared(keras.losses.Loss):
        def call(self, same, distance):
            return keras.ops.mean(keras.ops.square(1 - same - distance))

    class Count(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1

    own, count = skipping(), Count()
    before = own.get_weights()
    run = train(Config(**SMALL), given, encoder=own, loss=Squared(name="squared"),
                callbacks=[count], verbose=0)  # fmt: skip
    assert "".join(capsys.readouterr()) == ""
    assert run.encoder is own and count.steps == 8 and len(run.history["val_auc"]) == 2
    assert any((one != two).any() for one, two in zip(before, own.get_weights(), strict=True))
    images = given[0].astype(np.float32)
    left, right = (
        run.encoder.predict(images, verbose=0),
        run.encoder.predict(images[::-1], verbose=0),
    )
    distances = run.model.predict([images, images[::-1]], verbose=0)
    np.testing.assert_allclose(distances[:, 0], np.linalg.norm(left - right, axis=1), atol=1e-4)
    assert left.shape == (60, 5) and run.threshold > 0
    (run.path / "model.keras").unlink()  # as if it were not finished
    assert command.main([str(run.path)]) == command.WRONG_INPUT
    assert "skipping, squared): train it from Python" in capsys.readouterr().err


def test_arrays_paths_and_a_data_set_give_the_same_pixels(given, tmp_path):
    images, labels = given
    paths = [tmp_path / f"{number}.png" for number in range(60)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    seen = []
    for data in (given, (paths, labels)):
        config, _ = command._given(Config(**SMALL), data, None)
        dataset = load_data(config)
        rows = range(len(dataset.index))
        seen.append({dataset.pixels[row].tobytes(): dataset.index.labels[row] for row in rows})
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert seen == [expected, expected]
    assert train(Config(**SMALL), dataset, verbose=0).history["loss"]


def test_errors_are_exceptions(given):
    images, labels = given
    with pytest.raises(ValueError, match="Expected uint8 images"):
        train(Config(**SMALL), (images / 255, labels), verbose=0)
    with pytest.raises(ValueError, match="60 images, 3 labels"):
        train(Config(**SMALL), (images, labels[:3]), verbose=0)

    def lost(same, distance):
        return keras.ops.mean(distance) * np.nan

    with pytest.raises(TrainingFailed, match="The loss is nan"):
        train(Config(**SMALL), given, loss=lost, verbose=0)
