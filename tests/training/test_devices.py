"""Several devices, virtual ones of JAX, against one: the same history, the same weights."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from run_directory import RunError
from training import fit

PYTHON = os.environ.get("SIAMESE_OTHER_PYTHON")  # one that has JAX
TRAIN = """
import sys
import numpy as np
import train
from configs import Config

rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 9)
noise = rng.normal(0, 30, (54, 16, 16, 3)) + rng.integers(40, 215, (6, 1, 1, 3))[labels]
data = noise.clip(0, 255).astype(np.uint8), labels
path, sampling = sys.argv[1:]
fields = {"sampling": sampling, "pairs_per_batch": 16, "images_per_class": 4}
fields |= {"classes_per_batch": 4, "image_size": 16, "embedding_dim": 8}
fields |= {"epochs": 2, "steps_per_epoch": 3, "optimizer": "sgd", "precision": "float32"}
arrays = {}
for choice in ("none", "auto"):
    run = train.train(Config(**fields, distribution=choice), data)
    arrays[f"{choice}-loss"] = run.history["loss"]
    arrays[f"{choice}-auc"] = run.history["val_auc"]
    arrays[f"{choice}-weights"] = np.concatenate([w.ravel() for w in run.encoder.get_weights()])
np.savez(path, **arrays)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="SIAMESE_OTHER_PYTHON names no Python that has JAX")
@pytest.mark.parametrize("sampling", ["pairs", "classes"])
def test_two_devices_train_as_one(tmp_path, sampling):
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [PYTHON, "-c", TRAIN, "arrays.npz", sampling]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    arrays = np.load(tmp_path / "arrays.npz")
    for name in ("loss", "auc", "weights"):
        one, two = arrays[f"none-{name}"], arrays[f"auto-{name}"]
        assert np.linalg.norm(two - one) <= 1e-3 * np.linalg.norm(one), name


def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused(monkeypatch):
    three = SimpleNamespace(device_mesh=SimpleNamespace(devices=np.zeros(3)))
    monkeypatch.setattr(keras.distribution, "distribution", lambda: three)
    fit.check_even(126)
    with pytest.raises(RunError, match="128 cannot be dealt out evenly to 3 devices"):
        fit.check_even(128)
