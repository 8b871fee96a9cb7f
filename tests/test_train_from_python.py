"""`train` from Python: arrays, paths, one's own network and loss, silence, errors as exceptions."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from conftest import noise_about_colors, residual_network
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
    return noise_about_colors(6, 10, deviation=30)


def test_own_network_and_loss_on_arrays_in_silence(given, capsys):
    class Squared(keras.losses.Loss):
        def call(self, same, distance):
            return keras.ops.mean(keras.ops.square(1 - same - distance))

    class Count(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1

    own, count = residual_network(16, 5), Count()
    before = own.get_weights()
    run = train(Config(**SMALL), given, encoder=own, loss=Squared(name="squared"),
                callbacks=[count], verbose=0)  # fmt: skip
    assert "".join(capsys.readouterr()) == ""
    assert run.encoder is own and count.steps == 8 and len(run.history["val_auc"]) == 2
    assert any((one != two).any() for one, two in zip(before, own.get_weights(), strict=True))
    images = given[0].astype(np.float32)
    embeddings = run.encoder.predict(images, verbose=0)
    distances = run.model.predict([images, images[::-1]], verbose=0)[:, 0]
    expected = np.linalg.norm(embeddings - embeddings[::-1], axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-4)
    assert embeddings.shape == (60, 5) and run.threshold > 0
    saved = json.loads((run.path / "config.json").read_text())
    assert saved["own_parts"] == "encoder residual, loss squared" and saved["embedding_dim"] == 5


def test_a_run_with_own_parts_goes_on_from_python_alone(given, capsys):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise SystemExit

    config = Config(**SMALL, run_name="run", deterministic=True)
    keras.utils.set_random_seed(1)
    own = residual_network(16, 5)
    start = own.get_weights()
    whole = train(dataclasses.replace(config, run_name="whole"), given, encoder=own, verbose=0)
    own = residual_network(16, 5)
    own.set_weights(start)
    with pytest.raises(SystemExit):
        train(config, given, encoder=own, callbacks=[Killed()], verbose=0)
    for args in (["runs/run"], ["runs/run/config.json"]):
        assert command.main(args) == command.WRONG_INPUT
        assert "Expected: encoder residual. Give them again, from Python" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Expected: encoder residual. Give them again"):
        train("runs/run", verbose=0)
    run = train("runs/run", encoder=residual_network(16, 5), verbose=0)
    assert run.history["loss"] == whole.history["loss"]
    assert all(map(np.array_equal, whole.encoder.get_weights(), run.encoder.get_weights()))


@pytest.mark.slow
def test_a_run_that_starts_from_another(given):
    first = train(Config(**SMALL), given, verbose=0)
    images, labels = given
    config = Config(**SMALL | {"epochs": 1, "weights": str(first.path), "learning_rate": 1e-8})
    still = train(config, (images[:30], labels[:30]), verbose=0)
    for one, other in zip(first.encoder.weights, still.encoder.weights, strict=True):
        if "moving" not in one.path:
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-4)


def test_arrays_paths_and_a_data_set_give_the_same_pixels(given, tmp_path):
    images, labels = given
    paths = [tmp_path / f"{number}.png" for number in range(60)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    seen = []
    for data in (given, (paths, labels)):
        config, _ = command.with_own_parts(Config(**SMALL), data, None, None)
        dataset = load_data(config)
        rows = range(len(dataset.index))
        seen.append({dataset.pixels[row].tobytes(): dataset.index.labels[row] for row in rows})
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert seen == [expected, expected]
    each = keras.losses.mean_squared_error  # a number for each pair
    assert train(Config(**SMALL), dataset, loss=each, verbose=0).history["val_loss"]


def test_errors_are_exceptions(given):
    images, labels = given
    with pytest.raises(ValueError, match="Expected uint8 images"):
        train(Config(**SMALL), (images / 255, labels), verbose=0)
    with pytest.raises(ValueError, match="60 images, 3 labels"):
        train(Config(**SMALL), (images, labels[:3]), verbose=0)

    for value in (np.nan, np.inf):

        def lost(same, distance, value=value):
            return keras.ops.mean(distance) * value

        with pytest.raises(TrainingFailed, match=f"The loss is {value}.*learning_rate"):
            train(Config(**SMALL), given, loss=lost, verbose=0)
