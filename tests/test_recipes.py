"""Every published recipe trains, ends with a model that loads, and is scored, at its own size."""

import csv
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
    "--epochs 1 --steps_per_epoch 2 --pairs_per_batch 4 --classes_per_batch 3 "
    "--images_per_class 2 --max_minutes 50 --test_share 0.2 --val_share 0.25 --runs_dir runs"
).split()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "plantvillage-recipe" else pytest.mark.slow)
        for name in CONFIGS.keys() - {"leaves"}
    ],
)
def test_recipe_trains_and_is_scored(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, of in itertools.product(range(8), ("images", "fresh")):  # four families of two
        for number in range(10):
            path = tmp_path / f"{of}/family{folder // 2}/{of}{folder}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = 30 * folder + rng.integers(0, 30, (20, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    assert train.main([name, "--data_dir", "images", "--run_name", name, *FEW]) == 0
    run = RunDirectory(tmp_path / "runs" / name)
    distance = run.load_distance()
    assert (distance is None) == (CONFIGS[name].distance == "euclidean")
    with open(run / "history.csv") as file:
        assert np.isfinite(float(next(csv.DictReader(file))["val_loss"]))
    few = ["--ways", "5", "--shots", "1", "--trials", "50"]
    assert evaluate.main([str(run.path), "--data", "fresh", *few]) == 0
    scores = json.loads((run / "evaluation-fresh/metrics.json").read_text())["unseen"]
    assert 0 <= scores["auc"] <= 1
