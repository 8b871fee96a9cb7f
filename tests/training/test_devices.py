"""Many devices and many hosts against one: same loss, same gradients, same run.

Devices are virtual, hosts are processes. What needs JAX runs under a Python that has it:
KERAS_BACKEND=jax python -m pytest tests/test_distribution.py
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import Config
from pipeline.class_batches import ClassBatches
from pipeline.pairs import PairBatches
from run_directory import STATE, RunError
from training import devices

BATCHES = {"pairs": PairBatches, "classes": ClassBatches}
ROOT = Path(__file__).parents[2]
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
KINDS = {
    "supervised_contrastive": {"sampling": "classes"},
    "circle": {"sampling": "classes", "loss": "circle"},
    "pairs": {"sampling": "pairs", "loss": "contrastive"},
}
TINY = (
    "leaves --sampling classes --data_dir images "
    "--image_size 16 --classes_per_batch 4 --images_per_class 4 "
    "--steps_per_epoch 30 --epochs 3 --embedding_dim 8 --precision float32 --unseen_share 0.25 "
    "--max_minutes 1000 --distribution data_parallel --run_name"
).split()


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
        with devices.scope(config, None):
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


@pytest.mark.parametrize("num_devices", [2, 4])
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


@pytest.mark.parametrize("kind", ["supervised_contrastive", "pairs"])
def test_hosts_parts_make_the_whole_batch(kind, build_index, monkeypatch):
    config = Config(image_size=8, classes_per_batch=4, images_per_class=4, pairs_per_batch=16,
                    rotated_classes=True, recolor_share=0.5, **KINDS[kind])  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    index = build_index(np.arange(40) // 5)
    batches = BATCHES[config.sampling](index, pixels, np.arange(40), config)
    whole, parts = batches[3], []
    monkeypatch.setattr(devices, "num_devices", lambda: 4)
    monkeypatch.setattr(devices, "NUM_HOSTS", 2)
    for host in (0, 1):
        monkeypatch.setattr(devices, "HOST", host)
        batches.part = devices.part(16)
        parts.append(batches[3])
    (first, labels), (second, others) = parts
    assert (np.concatenate([labels, others]) == whole[1]).all()
    if kind != "pairs":
        first, second, whole = [first], [second], [whole[0]]
    else:
        whole = whole[0]
    for one, other, both in zip(first, second, whole, strict=True):
        assert len(one) == 8 and (np.concatenate([one, other]) == both).all()


def test_what_cannot_be_is_a_sentence(monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.setattr(devices, "num_devices", lambda: 3)
    with pytest.raises(RunError, match="128 cannot be dealt out evenly to 3 devices"):
        devices.part(128)

    def unknown():
        raise AttributeError  # as PyTorch's before Keras 3.16

    monkeypatch.setattr(keras.distribution, "list_devices", unknown)
    asked = Config(distribution="data_parallel")
    with pytest.raises(RunError, match="needs a newer Keras"), devices.scope(asked, None):
        pass
    with devices.scope(Config(), None):
        pass
    monkeypatch.setattr(devices, "NUM_HOSTS", 2)
    alone = Config(distribution="none")
    with pytest.raises(RunError, match="2 hosts need JAX"), devices.scope(alone, None):
        pass


@pytest.fixture
def start(tmp_path):
    """`start(host, hosts, port, *args)` begins train.py as one of the hosts, in a folder."""
    for package in ("jax", "cv2", "tyro"):
        pytest.importorskip(package)
    rng = np.random.default_rng(0)
    for number in range(112):
        color = 75 + 100 * np.array([number & 1, number >> 1 & 1, number >> 2 & 1])
        path = tmp_path / f"images/class{number % 8}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (color + rng.normal(0, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    begun = []

    def begin(host, hosts, port, *args):
        names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
        values = (f"127.0.0.1:{port}", str(hosts), str(host))
        hosts = {f"KERAS_DISTRIBUTION_{n}": v for n, v in zip(names, values, strict=True)}
        environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": _path(), **hosts}
        begun.append(subprocess.Popen(
            [sys.executable, ROOT / "train.py", *args], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


def _path():
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_hosts_come_to_the_weights_of_one(start, tmp_path):
    import h5py

    def weights(name):
        found = {}
        with h5py.File(tmp_path / f"runs/{name}/model.weights.h5") as file:
            file.visititems(
                lambda at, v: found.update({at: v[()]}) if isinstance(v, h5py.Dataset) else None
            )
        return found

    alone = start(0, 1, 0, *TINY, "one", "--steps_per_epoch", "4")
    assert alone.wait(900) == 0, alone.stderr.read()
    port = _free_port()
    hosts = [start(host, 2, port, *TINY, "two", "--steps_per_epoch", "4") for host in (0, 1)]
    for host in hosts:
        assert host.wait(900) == 0, host.stderr.read()
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != "one"] == ["two"]
    one, two = weights("one"), weights("two")
    for name in one:
        scale = max(1.0, np.abs(one[name]).max())
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-4 * scale)


def test_a_lost_host_ends_the_run_which_goes_on_without_it(start, tmp_path):
    port, history = _free_port(), tmp_path / "runs/run/history.csv"
    first, second = (start(host, 2, port, *TINY, "run") for host in (0, 1))
    while not history.exists():
        assert first.poll() is None and second.poll() is None
        time.sleep(0.1)
    second.kill()
    assert first.wait(300) == 1
    assert "Continue from the last state" in first.stderr.read()
    assert (tmp_path / "runs/run" / STATE).exists()
    alone = start(0, 1, 0, "runs/run")
    output, errors = alone.communicate(timeout=900)
    assert alone.returncode == 0, errors
    assert "Continuing after epoch" in output and len(history.read_text().splitlines()) == 4


if __name__ == "__main__":
    one_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])
