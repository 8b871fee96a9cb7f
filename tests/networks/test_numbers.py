"""Numbers stay finite whatever comes, and are the same on every worker, run and backend."""

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from configs import RANGES, Config
from pipeline.class_batches import ClassBatches
from pipeline.pairs import PairBatches

BATCHES = {"pairs": PairBatches, "classes": ClassBatches}
ROOT = Path(__file__).parents[2]
PLAIN = {"unit_length": False}
MARGINS = [1e-6, 1.0, 1e6]
assert MARGINS[::2] == list(RANGES["margin"])
CLASS_LOSSES = [
    *({"loss": "contrastive", "margin": margin} for margin in MARGINS),
    *({"loss": "supervised_contrastive", "temperature": t} for t in RANGES["temperature"]),
    *({"loss": "triplet", "triplet": kind, "margin": 1e6} for kind in ("hardest", "1+2", "2+1")),
]
FINITE = {"max_examples": 40, "deadline": None}
VALUES = st.floats(-1000, 1000, width=32)


def assert_finite(loss, labels, embeddings, to_outputs):
    """A loss and its gradient with respect to the embeddings."""
    import keras

    name = keras.backend.backend()
    backend = importlib.import_module(name)
    if name == "jax":
        loss_of = backend.value_and_grad(lambda at: loss(labels, to_outputs(at)))
        value, gradient = loss_of(embeddings)
    elif name == "torch":
        variable = backend.tensor(embeddings, requires_grad=True)
        value = loss(labels, to_outputs(variable))
        (gradient,) = backend.autograd.grad(value, variable, materialize_grads=True)
    else:
        variable = backend.Variable(embeddings)
        with backend.GradientTape() as tape:
            value = loss(labels, to_outputs(variable))
        gradient = tape.gradient(value, variable, unconnected_gradients="zero")
    for found in (value, gradient):
        assert np.isfinite(keras.ops.convert_to_numpy(found)).all()


@pytest.mark.parametrize("fields", CLASS_LOSSES, ids=lambda f: "-".join(map(str, f.values())))
@settings(**FINITE)
@given(
    embeddings=hnp.arrays(np.float32, (6, 3), elements=VALUES),
    labels=hnp.arrays(np.int32, 6, elements=st.integers(0, 3)),
    kind=st.sampled_from(["as drawn", "identical", "zero", "a class each", "one class"]),
    unit_length=st.booleans(),
)
def test_losses_of_a_batch(fields, embeddings, labels, kind, unit_length):
    import siamese_network_funcs as funcs

    loss = funcs.build_loss(Config(sampling="classes", **PLAIN, **fields))
    labels = {"a class each": np.arange(6), "one class": np.zeros(6)}.get(kind, labels)
    embeddings = embeddings * (kind != "zero")
    if kind == "identical":
        embeddings = np.tile(embeddings[:1], (6, 1))
    to_outputs = funcs.unit_length if unit_length else lambda x: x
    assert_finite(loss, labels.astype(np.int32), embeddings, to_outputs)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", MARGINS)
@settings(**FINITE)
@given(
    sides=hnp.arrays(np.float32, (2, 4, 3), elements=VALUES),
    same=hnp.arrays(np.float32, (4, 1), elements=st.sampled_from([0.0, 1.0])),
    identical=st.booleans(),
)
def test_losses_of_pairs(margin, distance, sides, same, identical):
    import siamese_network_funcs as funcs

    loss = funcs.build_loss(Config(distance=distance, margin=margin, **PLAIN))
    sides = np.stack([sides[0], sides[0]]) if identical else sides
    measure = {"euclidean": funcs.euclidean_distance, "cosine": funcs.cosine_distance}[distance]
    assert_finite(loss, same, sides, lambda both: measure([both[0], both[1]]))


@settings(**FINITE)
@given(
    logits=hnp.arrays(np.float32, (5, 1), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    same=hnp.arrays(np.float32, (5, 1), elements=st.sampled_from([0.0, 1.0])),
)
def test_cross_entropy_of_a_certain_network(logits, same):
    from keras import ops

    import siamese_network_funcs as funcs

    fields = {"sampling": "pairs", "loss": "binary_crossentropy", "distance": "l1"}
    assert_finite(funcs.build_loss(Config(**fields, **PLAIN)), same, logits, ops.sigmoid)


@pytest.mark.parametrize("encoder", ["compact", "leaf_cnn"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_images_without_content(encoder, precision):
    """Black, white or identical ones, of one class, or of a class each: weights stay finite."""
    from training import fit

    shape = {"image_size": 24, "embedding_dim": 8, "sampling": "classes"}
    config = Config(encoder=encoder, precision=precision, **shape)
    network, model = fit.build_training_model(config)
    fit.compile_model(model, config)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3))
    labels = [np.arange(8), np.zeros(8), np.arange(8) // 2]
    for picture, classes in itertools.product((noise * 0, noise * 0 + 255, noise), labels):
        images = np.tile(picture, (8, 1, 1, 1)).astype(np.uint8)
        loss = model.train_on_batch(images, classes.astype(np.int32))[0]
        assert np.isfinite(loss)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


# The same numbers everywhere


@pytest.mark.parametrize("sampling", BATCHES)
def test_batches_do_not_depend_on_the_workers(sampling, build_index):
    """Of seed and step alone: threads or processes, and in any order."""
    index = build_index(np.arange(60) // 5, families=np.arange(12) // 4)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    config = Config(pairs_per_batch=16, classes_per_batch=4, images_per_class=4, shear=0.1,
                    family_batches=0.5, rotated_classes=True)  # fmt: skip
    batches, other = (
        BATCHES[sampling](index, pixels, np.arange(60), dataclasses.replace(config, seed=seed))
        for seed in (0, 1)
    )
    expected = [batches[step] for step in range(12)]
    firsts = [*(images for images, _ in expected), other[0][0]]
    assert len({np.asarray(images).tobytes() for images in firsts}) == 13
    spawned = multiprocessing.get_context("spawn")
    for pool in (ThreadPoolExecutor(4), ProcessPoolExecutor(2, mp_context=spawned)):
        with pool as executor:
            found = list(executor.map(batches.__getitem__, reversed(range(12))))[::-1]
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


STEP = """
import json, sys, keras, numpy as np
from configs import Config
from siamese_network_funcs import build_encoder, build_loss, build_siamese_network
rng, found = np.random.default_rng(0), {}
images = rng.integers(0, 256, (2, 16, 32, 32, 3)).astype(np.float32)
for fields in json.loads(sys.argv[1]):
    fields = {"sampling": "classes"} | fields
    config = Config(image_size=32, embedding_dim=16, precision="float32", **fields)
    encoder = build_encoder(config)
    pairs = config.sampling == "pairs"
    model = build_siamese_network(encoder, config.distance) if pairs else encoder
    draw = np.random.default_rng(1)
    weights = [draw.normal(0, 0.05, w.shape) + (w.mean() > 0.5) for w in model.get_weights()]
    model.set_weights(weights)  # scales and variances about 1
    model.compile("sgd", build_loss(config))
    batch = [images[0], images[1]] if pairs else images[0]
    labels = np.arange(16) // 4
    labels = (labels < 2).astype("float32")[:, None] if pairs else labels
    found["-".join(map(str, list(fields.values())))] = [
        float(model.train_on_batch(batch, labels)) for _ in range(2)
    ]
print(json.dumps(found))
"""
STEPS = [
    {"loss": "supervised_contrastive"},
    {"loss": "contrastive"},
    {"loss": "triplet"},
    {"sampling": "pairs", "loss": "contrastive"},
    {"sampling": "pairs", "loss": "binary_crossentropy", "distance": "l1_512"},
    {"encoder": "spatial", "loss": "supervised_contrastive"},
]


def run_with(backend, *command, cwd=ROOT):
    """What a Python that has a backend prints; skips where there is none."""
    python = sys.executable
    if importlib.util.find_spec(backend) is None:
        python = os.environ.get("SIAMESE_OTHER_PYTHON")  # one that has the other backends
    if not python:
        pytest.skip(f"{backend} is not installed, and SIAMESE_OTHER_PYTHON names no other Python")
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([python, *command], cwd=cwd, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@functools.cache
def first_losses(backend):
    """The losses of the first two steps from given weights, on one backend."""
    return json.loads(run_with(backend, "-c", STEP, json.dumps(STEPS)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_first_losses_agree_across_backends(backend):
    expected, found = first_losses("tensorflow"), first_losses(backend)
    assert len(expected) == len(STEPS) and found.keys() == expected.keys()
    for name, losses in expected.items():
        assert losses[0] != losses[1]
        assert found[name] == pytest.approx(losses, rel=1e-4, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_trains_and_passes_the_tests_of_networks(backend, tiny_run, tmp_path):
    images = str(tiny_run / "images")
    command = (str(ROOT / "train.py"), "leaves", "--data_dir", images, *TINY)
    assert "Same below a distance" in run_with(backend, *command, cwd=tmp_path)
    evaluated = run_with(backend, str(ROOT / "evaluate.py"), "runs/run", cwd=tmp_path)
    assert "ROC AUC" in evaluated
    files = "tests/networks", "tests/test_siamese_network_funcs.py", "tests/training"
    assert "passed" in run_with(backend, "-m", "pytest", *files)
