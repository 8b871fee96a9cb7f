"""The whole command line on a tiny set: outputs, continuing, stopping, failing."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

import train
from configs import Config
from run_directory import STATE, RunDirectory
from training import callbacks, fit
from training.validation import Validator

ROOT = Path(__file__).parent.parent
TINY = (
    "--sampling classes "
    "--image_size 16 --classes_per_batch 4 --images_per_class 4 --steps_per_epoch 4 --epochs 4 "
    "--embedding_dim 8 --deterministic True --precision float32 --unseen_share 0.25 "
    "--max_minutes 1000"  # far off: a slow machine must not change the schedule
).split()
PAIRS_WITH_DROPOUT = (
    "--sampling pairs --loss contrastive --encoder leaf_cnn --pairs_per_batch 8 "
    "--unit_length False --image_size 24 --optimizer rmsprop"
).split()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with eight classes of twelve coloured noise images, as current directory."""
    rng = np.random.default_rng(0)
    for label, color in enumerate(rng.integers(40, 215, (8, 3))):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = (color + rng.normal(0, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_train(name, *more):
    return train.main(["leaves", "--data_dir", "images", *TINY, "--run_name", name, *more])


def weights(name):
    return RunDirectory(Path("runs") / name).load_encoder().get_weights()


def history(name):
    with open(Path("runs") / name / "history.csv") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_whole_command(workplace, capsys):
    assert run_train("one") == 0
    run = workplace / "runs" / "one"
    expected = (
        "config.json environment.json splits.json history.csv model.keras encoder.keras "
        "model.weights.h5 architecture.json threshold.json accuracy.png loss.png pairs.png"
    )
    assert set(expected.split()) <= {path.name for path in run.iterdir()}
    assert not (run / STATE).exists()
    assert "runs/one" in capsys.readouterr().out.splitlines()[-1]
    assert Config(**json.loads((run / "config.json").read_text())).run_name == "one"
    for figure in ("accuracy.png", "loss.png", "pairs.png"):
        assert np.asarray(Image.open(run / figure)).std() > 1
    rows = history("one")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "val_one_shot"):
        assert all(np.isfinite(float(row[name])) for row in rows)

    splits = json.loads((run / "splits.json").read_text())
    assert len(splits["unseen_classes"]) == 2 and len(splits["known_classes"]) == 6
    threshold = json.loads((run / "threshold.json").read_text())
    assert "equal error" in threshold["chosen_for"]

    model = RunDirectory(run).load_model()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 16, 16, 3)).astype(np.float32)
    distances = model.predict(list(pixels), verbose=0)
    embeddings = RunDirectory(run).load_encoder().predict(pixels.reshape(6, 16, 16, 3), verbose=0)
    expected = np.linalg.norm(embeddings[:3] - embeddings[3:], axis=1, keepdims=True)
    np.testing.assert_allclose(distances, expected, atol=1e-4)


def test_best_epochs_weights_are_kept(workplace):
    assert run_train("best", "--monitor", "val_loss") == 0
    rows = history("best")
    best = min(float(row["val_loss"]) for row in rows)
    run = RunDirectory(workplace / "runs" / "best")
    config = run.config
    dataset = train.load_data(config)
    validator = Validator(dataset, config)
    metrics, _ = validator.score(run.load_encoder())
    assert metrics["val_loss"] == pytest.approx(best, abs=1e-4)


PRETRAINED = "--encoder VGG16 --image_size 32 --weights backbone.weights.h5".split()


def save_backbone():
    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    network.save_weights("backbone.weights.h5")
    return network.get_weights()


@pytest.mark.slow
def test_pretrained_weights_stay_while_frozen_and_move_afterwards(workplace, monkeypatch):
    saved, keep = save_backbone(), keras.callbacks.EarlyStopping
    # The worst epoch's weights are kept, as the first epoch's would tell nothing.
    monkeypatch.setattr(
        keras.callbacks, "EarlyStopping", lambda mode, **others: keep(mode="max", **others)
    )
    for name, frozen, equal in (("still", "4", True), ("moved", "1", False)):
        assert run_train(name, *PRETRAINED, "--frozen_epochs", frozen) == 0
        encoder = RunDirectory(Path("runs") / name).load_encoder()
        kept = encoder.get_layer("backbone").get_weights()
        same = [np.array_equal(*both) for both in zip(kept, saved, strict=True)]
        assert all(same) == equal
    rates = [float(row["learning_rate"]) for row in history("moved")]
    assert rates[1] < 0.1 * rates[0]  # a tenth, and the cosine besides


def test_weights_that_are_not_there_end_in_a_sentence(workplace, capsys):
    assert run_train("none", *PRETRAINED, "--weights", "nowhere.weights.h5") == train.WRONG_INPUT
    assert "weights='nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        ["--patience", "3"],
        pytest.param(PAIRS_WITH_DROPOUT, marks=pytest.mark.slow),
        pytest.param([*PRETRAINED, "--frozen_epochs", "1"], marks=pytest.mark.slow),
    ],
)
def test_continuing_gives_the_weights_of_an_undisturbed_run(workplace, monkeypatch, settings):
    if "--weights" in settings:
        save_backbone()
    assert run_train("undisturbed", *settings) == 0

    class Killed(BaseException):
        pass

    original = callbacks.Recorder.on_train_batch_end

    def killed_in_third_epoch(self, batch, logs=None):
        if len(self.history) == 2 and batch == 2:
            raise Killed
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_train_batch_end", killed_in_third_epoch)
        with pytest.raises(Killed):
            run_train("killed", *settings)
    assert not RunDirectory("runs/killed").is_finished
    assert train.main(["runs/killed"]) == 0
    assert history("killed") == history("undisturbed")
    for one, other in zip(weights("killed"), weights("undisturbed"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert train.main(["runs/killed"]) == train.WRONG_INPUT  # finished now


def test_killed_after_the_last_epoch_trains_no_more(workplace, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fit, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_train("late")
    monkeypatch.setattr(fit, "_fit", lambda *_: pytest.fail("trained again"))
    assert train.main(["runs/late"]) == 0
    assert (workplace / "runs/late/accuracy.png").exists()


def start_in_background(*more):
    command = [sys.executable, str(ROOT / "train.py"), "leaves", "--data_dir", "images", *TINY]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)


def wait_for_state(run):
    for _ in range(600):
        if (run / STATE).exists():
            return
        time.sleep(0.1)
    pytest.fail("no epoch ended within a minute")


def test_ctrl_c_and_sigkill_leave_a_run_that_continues(workplace):
    assert run_train("undisturbed", "--epochs", "15") == 0
    run = workplace / "runs" / "background"
    process = start_in_background("--epochs", "15", "--run_name", "background")
    wait_for_state(run)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == fit.INTERRUPTED, output
    assert "python train.py runs/background" in output
    assert (run / "model.keras").exists() and (run / "loss.png").exists()
    epochs = len(history("background"))
    assert 0 < epochs < 15

    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), str(run)])
    while len(history("background")) == epochs:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert train.main([str(run)]) == 0
    assert history("background") == history("undisturbed")
    for one, other in zip(weights("background"), weights("undisturbed"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_collapse_is_noticed(workplace, capsys):
    # Steps so large that every last ReLU dies: each image's embedding is zero.
    settings = (
        "--sampling pairs --loss contrastive --encoder leaf_cnn --image_size 24 "
        "--unit_length False --optimizer sgd --learning_rate 1.5 --schedule constant"
    )
    assert run_train("flat", *settings.split()) == fit.FAILED
    message = capsys.readouterr().err
    assert "collapsed" in message and "learning_rate" in message
    assert not (workplace / "runs/flat/.partial").exists()


def test_a_loss_that_is_not_finite_stops_the_run(workplace, capsys):
    settings = "--optimizer sgd --learning_rate 10 --unit_length False --loss contrastive "
    settings += "--encoder leaf_cnn --image_size 24"
    status = run_train(
        "diverged", *settings.split(), "--margin", "1000000", "--schedule", "constant"
    )
    assert status == fit.FAILED
    assert "not finite" in (error := capsys.readouterr().err) or "nan" in error or "inf" in error


def test_time_limit_ends_the_run_annealed(workplace):
    begin = time.monotonic()
    assert run_train("short", "--max_minutes", "0.3", "--epochs", "100000") == 0
    assert time.monotonic() - begin < 30
    rows = history("short")
    assert 1 < len(rows) < 100000
    assert float(rows[-1]["learning_rate"]) < 1e-4 < max(float(r["learning_rate"]) for r in rows)


def test_two_runs_of_one_second_get_two_directories(tmp_path):
    config = Config(runs_dir=str(tmp_path))
    paths = {RunDirectory.create(config, "leaves").path for _ in range(3)}
    assert len(paths) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data_dir", "nowhere"], "does not exist"),
        (["nonsense"], "Unknown config"),
        (["images"], "no config.json"),
        (
            ["leaves", "--data_dir", "images", *PRETRAINED, "--weights", "nowhere.weights.h5"],
            "weights='nowhere.weights.h5': no such file. Expected",
        ),
    ],
)
def test_wrong_input_is_told_before_tensorflow_is_imported(workplace, args, message):
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import train; status = train.main({args!r})\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == train.WRONG_INPUT
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (workplace / "runs").exists()


def test_a_run_name_that_is_taken_is_refused(workplace, capsys):
    assert run_train("twice") == 0
    assert run_train("twice") == train.WRONG_INPUT
    assert "python train.py runs/twice" in capsys.readouterr().err


def test_golden_first_step():
    """Losses of two steps; update only when network, loss or optimizer change on purpose."""
    keras.utils.set_random_seed(0)
    config = Config(image_size=32, embedding_dim=16, precision="float32", sampling="classes")
    encoder, model = fit.build_training_model(config)
    fit.compile_model(model, encoder, config)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 4).astype(np.int32)
    images = rng.integers(0, 256, (16, 32, 32, 3)) // 4 + labels[:, None, None, None] * 40
    losses = [model.train_on_batch(images.astype(np.uint8), labels)[0] for _ in range(2)]
    np.testing.assert_allclose(losses, GOLDEN, rtol=2e-3)


GOLDEN = [1.34579, 1.35329]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_share_of_waiting_for_data(ahead):
    """Half a second a batch is waited for, unless another thread made it in time."""

    class Slow:
        images_per_step = 1

        def __getitem__(self, step):
            time.sleep(0.25)
            return step

    feed = callbacks.Feed(Slow(), 5)
    config = Config(epochs=1, steps_per_epoch=5)
    schedule = SimpleNamespace(seconds_left=lambda: 0.0, learning_rate=lambda: 0.0)
    recorder = callbacks.Recorder(None, config, schedule, None, feed, None, [])
    recorder.on_epoch_begin(0)
    if ahead:
        maker = threading.Thread(target=lambda: [feed[number] for number in range(5)])
        maker.start()
        maker.join()
        recorder.step_end = time.monotonic()
    for number in range(5):
        if not ahead:
            feed[number]
        recorder.on_train_batch_end(number, {"loss": 1.0})
    assert recorder.waited == 0 if ahead else 0.9 <= recorder.waited < 5
