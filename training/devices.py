"""One run on many devices and many hosts, by Keras's and TensorFlow's own engines.

KERAS_BACKEND=jax python train.py NAME --distribution data_parallel

On several hosts (JAX), the same command on each, with these set:

KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:1234  the first host and a free port of it
KERAS_DISTRIBUTION_NUM_PROCESSES=2              hosts
KERAS_DISTRIBUTION_PROCESS_ID=0                 which one this is; 0 keeps the run directory

Each holds the whole model and its share of every batch; the loss is over all pairs of the whole.
"""

import atexit
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from run_directory import RunDirectory, RunError

# What needs Keras is imported in functions: hosts must find each other before anything else.

NUM_HOSTS = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
HOST = int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))


def open_run(run, config, name):
    """The run directory that this host writes: the run's own on the first, a passing one elsewhere.

    Args:
        run: A `RunDirectory` to continue, or None for a new one.
        config: Its `Config`.
        name: The config's name.
    """
    if HOST == 0:
        return run or RunDirectory.create(config, name)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the first host alone speaks
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if run:
        return RunDirectory(shutil.copytree(run.path, Path(folder) / name))
    return RunDirectory.create(dataclasses.replace(config, runs_dir=folder), name)


@contextlib.contextmanager
def scope(config, run):
    """What is built and trained inside is spread over the devices that are there.

    Args:
        config: A `Config`: `distribution`.
        run: The `RunDirectory`, to say how to continue when a host is lost.

    Raises:
        RunError: If the backend cannot do what is asked for.
    """
    import keras

    backend = keras.backend.backend()
    if NUM_HOSTS > 1 and (backend != "jax" or config.distribution == "none"):
        raise RunError(
            f"{NUM_HOSTS} hosts need JAX and distribution='data_parallel'. Received: {backend}, "
            f"'{config.distribution}'. Set KERAS_BACKEND=jax, or unset KERAS_DISTRIBUTION_*."
        )
    with _lost_hosts(run) if NUM_HOSTS > 1 else contextlib.nullcontext():
        if NUM_HOSTS > 1:
            keras.distribution.initialize()
        devices = _devices(config)
        if len(devices) < 2:
            spread = contextlib.nullcontext()
        elif backend == "tensorflow":
            import tensorflow

            spread = tensorflow.distribute.MirroredStrategy(devices).scope()
        else:
            parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
            spread = parallel.scope()
        with spread:
            yield


@contextlib.contextmanager
def _lost_hosts(run):
    """Ends the process with a sentence when another one no longer answers."""
    try:
        yield
    except RunError:
        raise
    except (ValueError, RuntimeError) as error:  # what JAX makes of a broken connection
        reason = str(error).partition("\n")[0]
        print(
            f"A host was lost, or failed: {reason}. Continue from the last state with the hosts "
            f"that are there: python train.py {run.path if HOST == 0 else 'RUN'}",
            file=sys.stderr,
            flush=True,
        )
        if HOST > 0:
            shutil.rmtree(run.path, ignore_errors=True)
        os._exit(1)  # an orderly end would wait for the lost one


def _devices(config):
    import keras

    if config.distribution == "none":
        return []
    try:
        return keras.distribution.list_devices()
    except AttributeError as error:  # PyTorch before Keras 3.16
        if config.distribution == "auto":
            return []
        raise RunError(
            f"distribution='data_parallel' on {keras.backend.backend()} needs a newer Keras. "
            f"Received: Keras {keras.__version__}. Set KERAS_BACKEND to jax or tensorflow, or "
            "distribution='none'."
        ) from error


def num_devices():
    """Over how many devices `scope` spreads what is built here and now."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.distribute.get_strategy().num_replicas_in_sync
    distribution = keras.distribution.distribution()
    return distribution.device_mesh.devices.size if distribution else 1


def part(batch_size):
    """The slice of each batch that this host reads.

    Raises:
        RunError: If a batch of this size cannot be dealt out evenly.
    """
    if batch_size % num_devices():
        raise RunError(
            f"A batch of {batch_size} cannot be dealt out evenly to {num_devices()} devices. "
            "Change classes_per_batch, images_per_class or pairs_per_batch, or set "
            "distribution='none'."
        )
    share = batch_size // NUM_HOSTS
    return slice(HOST * share, (HOST + 1) * share)


def over_whole_batch(model, loss, metric):
    """Makes a loss and a metric see the whole batch where TensorFlow's replicas see shares.

    On JAX a batch that lies on many devices is one array: all pairs are there by construction.

    Args:
        model: What is trained; its batch normalisation is made to see the whole batch too.
        loss: A `keras.losses.Loss`.
        metric: A function of (labels, outputs).

    Returns:
        `(loss, metric)`, as they came on one device.
    """
    import keras

    if keras.backend.backend() != "tensorflow" or num_devices() == 1:
        return loss, metric
    import tensorflow

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True

    def gathered(function):
        def of_all(labels, outputs, **settings):
            replica = tensorflow.distribute.get_replica_context()
            if replica:  # none while Keras only tries the shapes
                labels, outputs = (replica.all_gather(v, axis=0) for v in (labels, outputs))
            value = keras.ops.mean(function(labels, outputs, **settings))
            return keras.ops.reshape(value, (1,))  # a scalar would be summed over the replicas

        return of_all

    return gathered(loss.call), gathered(metric)


def agreed(number):
    """A number of this host's, as the clock's, in the first host's reading."""
    if NUM_HOSTS == 1:
        return number
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(number)))
