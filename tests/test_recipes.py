"""Every recipe trains, leaves all its files, and is scored, at its own size."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from configs import CONFIGS
from run_directory import RunDirectory

FEW = (
    "--steps_per_epoch 2 --pairs_per_batch 4 --classes_per_batch 3 --images_per_class 2 "
    "--max_minutes 50 --test_share 0.2 --val_share 0.25 --runs_dir runs --data_dir images"
).split()
SCORED = {"roc.png", "distances.png", "n_way.png", "report.html", "model_card.md", "metrics.json"}


OTHERS = CONFIGS.keys() - {"leaves", "plantvillage-recipe"}


@pytest.mark.parametrize(
    "name",
    ["plantvillage-recipe", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_recipe_trains_and_is_scored(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, of in itertools.product(range(12), ("images", "fresh")):  # six families of two
        for number in range(10):
            path = tmp_path / f"{of}/family{folder // 2}/{of}{folder}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = 20 * folder + rng.integers(0, 30, (20, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    epochs = min(1, CONFIGS[name].epochs)
    assert train.main([name, "--run_name", name, "--epochs", str(epochs), *FEW]) == 0
    run = RunDirectory(tmp_path / "runs" / name)
    assert (run.load_distance() is None) == (CONFIGS[name].distance == "euclidean")
    history = run.read_history()
    assert len(history) == epochs and all(np.isfinite(float(row["val_loss"])) for row in history)
    curves = {"accuracy.png", "loss.png"} if epochs else set()
    assert {path.name for path in run.path.iterdir()} >= {"pairs.png", *curves}
    few = ["--ways", "5", "--shots", "1", "--trials", "50"]
    assert evaluate.main([str(run.path), "--data", "fresh", *few]) == 0
    out = run / "evaluation-fresh"
    assert {path.name for path in out.iterdir()} >= SCORED
    assert 0 <= json.loads((out / "metrics.json").read_text())["unseen"]["auc"] <= 1
    report = (out / "report.html").read_text()
    assert "ROC AUC of pairs by one thing alone" in report and "raw pixels" in report
    if name == "koch":
        _, figures = evaluate.evaluate(run, trials=50, verbose=0)
        (legend,) = figures["n_way"].legends
        assert {text.get_text() for text in legend.get_texts()} == {
            *("model, 1-shot known", "raw pixels, 1-shot known"),  # characters trained on
            *("model, 1-shot unseen", "raw pixels, 1-shot unseen", "random, 1-shot"),
        }
