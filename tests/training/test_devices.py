"""Many devices, virtual ones, against one: same loss, same gradients.

KERAS_BACKEND=jax python -m pytest tests/training/test_devices.py   under a Python that has JAX
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import Config
from pipeline.class_batches import ClassBatches
from pipeline.pairs import PairBatches
from run_directory import RunError
from training import devices

BATCHES = {"pairs": PairBatches, "classes": ClassBatches}
ROOT = Path(__file__).parents[2]
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
KINDS = {
    "supervised_contrastive": {"sampling": "classes"},
    "pairs": {"sampling": "pairs", "loss": "contrastive"},
}


def one_step(kind, num_devices, path):
    """In a process of its own: one step by plain descent on one device and on several."""
    from networks.embedding import start_keras

    start_keras()
    import keras

    from networks.embedding import embed
    from training import callbacks, fit

    if BACKEND == "tensorflow":
        import tensorflow

        [cpu] = tensorflow.config.list_physical_devices("CPU")
        virtual = [tensorflow.config.LogicalDeviceConfiguration()] * num_devices
        tensorflow.config.set_logical_device_configuration(cpu, virtual)
    rng, arrays = np.random.default_rng(0), {}
    left, right = rng.integers(0, 256, (2, 16, 16, 16, 3)).astype(np.uint8)
    batch = left, np.arange(16, dtype=np.int32) // 4
    if kind == "pairs":
        batch = (left, right), (np.arange(16) < 8).astype(np.float32)[:, None]
    for choice in ("none", "data_parallel"):
        config = Config(
            image_size=16, embedding_dim=8, precision="float32", optimizer="sgd", learning_rate=1.0,
            steps_per_epoch=1, epochs=1, distribution=choice, **KINDS[kind],
        )  # fmt: skip
        keras.utils.set_random_seed(3)
        with devices.scope(config):
            assert devices.num_devices() == (1 if choice == "none" else num_devices)
            encoder, model = fit.build_training_model(config)
            fit.compile_model(model, encoder, config)
            before = model.get_weights()
            fit._fit(model, callbacks.Feed({0: batch}, 1), 0, 1, [])
            moved = [a - b for a, b in zip(model.get_weights(), before, strict=True)]
            arrays[f"{choice}-gradients"] = np.concatenate([m.ravel() for m in moved])
            arrays[f"{choice}-embeddings"] = embed(encoder, left, np.arange(16))
            for name in ("loss", "accuracy"):
                arrays[f"{choice}-{name}"] = model.history.history[name][0]
    np.savez(path, **arrays)


@pytest.mark.parametrize("num_devices", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_those_of_one_device(kind, num_devices, tmp_path):
    pytest.importorskip(BACKEND)
    if BACKEND == "torch":
        pytest.skip("Keras spreads PyTorch over devices from 3.16 on")
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": _path()}
    command = [sys.executable, __file__, kind, str(num_devices), str(tmp_path / "step.npz")]
    subprocess.run(command, env=environment, check=True, timeout=600)
    step = np.load(tmp_path / "step.npz")
    for name in ("loss", "accuracy", "gradients", "embeddings"):
        one, many = step[f"none-{name}"], step[f"data_parallel-{name}"]
        assert many.shape == one.shape
        # In float32 single entries wander with the threads; all together they do not.
        assert np.linalg.norm(many - one) <= 1e-5 * np.linalg.norm(one), name


def test_what_cannot_be_is_a_sentence(monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.setattr(devices, "num_devices", lambda: 3)
    with pytest.raises(RunError, match="128 cannot be dealt out evenly to 3 devices"):
        devices.check_batch_size(128)

    def unknown():
        raise AttributeError  # as PyTorch's before Keras 3.16

    monkeypatch.setattr(keras.distribution, "list_devices", unknown)
    asked = Config(distribution="data_parallel")
    with pytest.raises(RunError, match="needs a newer Keras"), devices.scope(asked):
        pass
    with devices.scope(Config()):
        pass


def _path():
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


if __name__ == "__main__":
    one_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])
