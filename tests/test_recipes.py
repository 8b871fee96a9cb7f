"""Every recipe trains, leaves all its files, and is scored, at its own size."""

import json

import numpy as np
import pytest
from conftest import write_colors

import evaluate
import train
from configs import CONFIGS
from run_directory import RunDirectory

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
    history = run.read_history()
    assert len(history) == epochs and all(np.isfinite(float(row["val_loss"])) for row in history)
    curves = {"accuracy.png", "loss.png"} if epochs else set()
    assert {path.name for path in run.path.iterdir()} >= {"pairs.png", *curves}
    few = ["--ways", "5", "--shots", "1", "--trials", "50"]
    assert evaluate.main([str(run.path), "--data", "fresh", *few]) == 0
    out = run / "evaluation-fresh"
    assert 0 <= json.loads((out / "metrics.json").read_text())["unseen"]["auc"] <= 1
    report = (out / "report.html").read_text()
    assert "ROC AUC of pairs by one thing alone" in report and "raw pixels" in report
