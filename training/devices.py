"""One run on all devices of a machine, by Keras's and TensorFlow's own engines."""

import contextlib

from run_directory import RunError

# What needs Keras is imported in functions: a wrong config is told before it.


@contextlib.contextmanager
def scope(config):
    """What is built and trained inside is spread over the devices that are there.

    Args:
        config: A `Config`: `distribution`.

    Raises:
        RunError: If the backend cannot do what is asked for.
    """
    import keras

    devices = _devices(config)
    if len(devices) < 2:
        spread = contextlib.nullcontext()
    elif keras.backend.backend() == "tensorflow":
        import tensorflow

        spread = tensorflow.distribute.MirroredStrategy(devices).scope()
    else:
        parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        spread = parallel.scope()
    with spread:
        yield


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


def check_batch_size(batch_size):
    """Raises a RunError where a batch cannot be dealt out evenly to the devices."""
    if batch_size % num_devices():
        raise RunError(
            f"A batch of {batch_size} cannot be dealt out evenly to {num_devices()} devices. "
            "Change classes_per_batch, images_per_class or pairs_per_batch, or set "
            "distribution='none'."
        )


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

    for layer in _all_layers(model):
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


def _all_layers(model):
    """The layers of a model and of the models within it."""
    for layer in model.layers:
        yield layer
        yield from _all_layers(layer) if hasattr(layer, "layers") else ()
