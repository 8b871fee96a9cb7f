"""The whole command line on a tiny set: outputs, continuing, stopping, failing; every recipe."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import TINY, write_colors
from PIL import Image

import evaluate
import train
from configs import CONFIGS, Config
from run_directory import STATE, RunDirectory
from training import callbacks, fit, schedule
from training.validation import Validator

ROOT = Path(__file__).parent.parent
SHORT = (
    "--steps_per_epoch 4 --epochs 4 --deterministic True "
    "--max_minutes 1000"  # far off: a slow machine must not change the schedule
).split()
PAIRS_WITH_DROPOUT = (
    "--sampling pairs --encoder leaf_cnn --pairs_per_batch 8 "
    "--unit_length False --image_size 24 --optimizer rmsprop"
).split()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with eight classes of twelve coloured noise images, as current directory."""
    write_colors(tmp_path / "images", 8, 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_train(name, *more):
    return train.main(["leaves", "--data_dir", "images", *TINY, *SHORT, "--run_name", name, *more])


def weights(name):
    return RunDirectory(Path("runs") / name).load_encoder().get_weights()


def history(name):
    rows = RunDirectory(Path("runs") / name).read_history()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_whole_command(workplace, capsys):
    assert run_train("one") == 0
    run = RunDirectory(workplace / "runs" / "one")
    expected = (
        "config.json environment.json splits.json history.csv model.txt model.keras "
        "encoder.keras model.weights.h5 architecture.json threshold.json"
    )
    assert set(expected.split()) <= {path.name for path in run.path.iterdir()}
    assert not (run / STATE).exists()
    assert capsys.readouterr().out.splitlines()[-4:-2] == ["Next:", "  python evaluate.py runs/one"]
    for figure in ("accuracy.png", "loss.png", "pairs.png"):
        assert np.asarray(Image.open(run / figure)).std() > 1
    rows = history("one")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "val_one_shot"):
        assert all(np.isfinite(float(row[name])) for row in rows)
    splits = run.read_json("splits.json")
    assert len(splits["unseen_classes"]) == 2 and len(splits["known_classes"]) == 6
    assert "equal error" in run.read_json("threshold.json")["chosen_for"]

    metrics, _ = Validator(train.load_data(run.config), run.config).score(run.load_encoder())
    best = min(float(row["val_loss"]) for row in rows)  # that epoch's weights are kept
    assert metrics["val_loss"] == pytest.approx(best, abs=1e-4)


def test_continuing_gives_the_weights_of_an_undisturbed_run(workplace, monkeypatch, capsys):
    """Ended in the third epoch by Ctrl-C."""
    assert run_train("undisturbed", *PAIRS_WITH_DROPOUT) == 0
    original = callbacks.Recorder.on_train_batch_end

    def disturbed(self, batch, logs=None):
        if len(self.history) == 2 and batch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_train_batch_end", disturbed)
        assert run_train("ended", *PAIRS_WITH_DROPOUT) == train.INTERRUPTED
    said = capsys.readouterr().err
    assert "Stopping after this step" in said
    assert "Continue with: python train.py runs/ended" in said
    assert Path("runs/ended/model.keras").exists() and len(history("ended")) == 2
    assert not RunDirectory("runs/ended").is_finished
    assert train.main(["runs/ended"]) == 0
    assert history("ended") == history("undisturbed")
    assert all(map(np.array_equal, weights("ended"), weights("undisturbed")))
    assert train.main(["runs/ended"]) == train.WRONG_INPUT  # finished now


def test_patience_ends_a_training_that_gets_no_better(workplace):
    still = "--learning_rate 1e-8 --patience 1 --monitor val_one_shot".split()
    assert run_train("still", *PAIRS_WITH_DROPOUT, *still) == 0
    assert len(history("still")) == 2


def test_a_training_that_goes_astray_is_stopped(workplace, capsys):
    """By steps so large that every last ReLU dies: each image's embedding is zero."""
    large = "--optimizer sgd --learning_rate 1.5 --schedule constant".split()
    assert run_train("astray", *PAIRS_WITH_DROPOUT, *large) == 1
    message = capsys.readouterr().err
    assert "collapsed" in message and "learning_rate" in message


@pytest.mark.parametrize(
    ("per_epoch", "slower", "cut"), [(40, 1, False), (40, 3, True), (10, 1, False)]
)
def test_a_time_limit_becomes_a_number_of_steps(monkeypatch, per_epoch, slower, cut):
    """A second a step and ten a validation, five minutes: counted by a clock of our own.

    Three steps and eleven timed ones decide; of ten steps an epoch a validation lies among them.
    """
    now = 0.0
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: now))
    config = Config(max_minutes=5, steps_per_epoch=per_epoch, epochs=1000, learning_rate=0.1)
    planned, rates = schedule.Schedule(config, deadline=300.0, seconds_per_epoch=10.0), []
    optimizer = SimpleNamespace(learning_rate=None)
    planned.set_model(SimpleNamespace(optimizer=optimizer, stop_training=False))
    for step in itertools.count():
        if step % per_epoch == 0:
            planned.on_epoch_begin(step // per_epoch)
        planned.on_train_batch_begin(step % per_epoch)
        rates.append(optimizer.learning_rate)
        now += 1.0 if step < 50 else slower
        planned.on_train_batch_end(step % per_epoch)
        if planned.model.stop_training:
            break
        now += 10.0 * (step % per_epoch == per_epoch - 1)
    spent = 14 + 10 * (13 // per_epoch)
    assert planned.total_steps == 14 + int(0.9 * (300 - spent) / (1 + 10 / per_epoch))
    assert bool(planned.cut_at) == cut and now <= 300 + slower
    assert cut or (len(rates) == planned.total_steps and rates[-1] < 1e-3 * max(rates))


def test_wrong_input_is_told_before_tensorflow_is_imported(workplace):
    told = {
        "--data_dir nowhere": "does not exist",
        "nonsense": "Unknown config",
        "images": "no config.json",
        "--cache_dir s3://a/b": "cache_dir must be a folder of this machine. Received: 's3",
        "--data_dir images --encoder VGG16 --weights no.h5": "weights='no.h5': no such file. Exp",
    }
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train\n"
        f"for args in {[*told]}: assert train.main(args.split()) == train.WRONG_INPUT\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for sentence, line in zip(told.values(), done.stderr.splitlines(), strict=True):
        assert sentence in line
    assert [path.name for path in workplace.iterdir()] == ["images"]


def test_golden_first_step():
    """Losses of two steps; update only when network, loss or optimizer change on purpose."""
    keras.utils.set_random_seed(0)
    config = Config(image_size=32, embedding_dim=16, precision="float32", sampling="classes")
    _, model = fit.build_training_model(config)
    fit.compile_model(model, config)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 4).astype(np.int32)
    images = rng.integers(0, 256, (16, 32, 32, 3)) // 4 + labels[:, None, None, None] * 40
    losses = [model.train_on_batch(images.astype(np.uint8), labels)[0] for _ in range(2)]
    np.testing.assert_allclose(losses, [1.34579, 1.35329], rtol=2e-3)


# Recipes

FEW = (
    "--steps_per_epoch 2 --pairs_per_batch 4 --classes_per_batch 3 --images_per_class 2 "
    "--max_minutes 50 --test_share 0.2 --val_share 0.25 --runs_dir runs --data_dir images"
).split()
OTHERS = CONFIGS.keys() - {"leaves", "plantvillage-recipe"}


@pytest.mark.parametrize(
    "name",
    ["plantvillage-recipe", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_recipe_trains_and_is_scored(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for family, folder in enumerate(["images", "fresh"] * 6):  # of two classes each
        write_colors(tmp_path / folder / f"family{family}", 2, 10, f"{family}-", family)
    epochs = min(1, CONFIGS[name].epochs)
    assert train.main([name, "--run_name", name, "--epochs", str(epochs), *FEW]) == 0
    run = RunDirectory(tmp_path / "runs" / name)
    assert (run.load_distance() is None) == (CONFIGS[name].distance == "euclidean")
    rows = run.read_history()
    assert len(rows) == epochs and all(np.isfinite(float(row["val_loss"])) for row in rows)
    curves = {"accuracy.png", "loss.png"} if epochs else set()
    assert {path.name for path in run.path.iterdir()} >= {"pairs.png", *curves}
    few = ["--ways", "5", "--shots", "1", "--trials", "50"]
    assert evaluate.main([str(run.path), "--data", "fresh", *few]) == 0
    out = run / "evaluation-fresh"
    assert 0 <= json.loads((out / "metrics.json").read_text())["unseen"]["auc"] <= 1
    report = (out / "report.html").read_text()
    assert "ROC AUC of pairs by one thing alone" in report and "raw pixels" in report
