"""Keras's `fit` around the batches: config and data set -> trained encoder. Needs Keras."""

import dataclasses
import sys
from pathlib import Path

import keras

from batches import BATCHES
from callbacks import (
    Epochs,
    Interrupted,
    Recorder,
    Schedule,
    TrainingFailed,
    interrupts,
    state_variables,
)
from siamese_network_funcs import (
    accuracy,
    batch_accuracy,
    build_encoder,
    build_loss,
    build_siamese_network,
)
from whitening import widen_encoder

FINISHED, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses


@dataclasses.dataclass
class Fitted:
    """What a training came to.

    Attributes:
        status: FINISHED, FAILED or INTERRUPTED.
        encoder: The encoder with the best epoch's weights, in float32; None if there are none.
        history: List of dicts, one an epoch.
        best_epoch: Whose weights these are, counted from 1; None before the first is over.
    """

    status: int
    encoder: keras.Model | None
    history: list
    best_epoch: int | None


def fit_encoder(run, config, dataset, validator, seconds_used):
    """Trains an encoder, going on from the run's last state where it has one.

    Args:
        run: A `RunDirectory`.
        config: A `Config`.
        dataset: A `prepare_data.Dataset`.
        validator: A `callbacks.Validator`.
        seconds_used: Of `max_minutes` so far.

    Returns:
        A `Fitted`.
    """
    encoder, model = build_training_model(config)
    batches = BATCHES[config.sampling](dataset.index, dataset.pixels, dataset.splits.train, config)
    state = run.load_state()
    first_epoch, time_share, done = 0, 0.0, False
    if state:
        arrays, facts = state
        restore(model, arrays["model"])
        first_epoch, time_share, done = facts["epoch"], facts["time_share"], facts["done"]
        seconds_used += facts["seconds_used"]
        print(f"Continuing after epoch {first_epoch}.")
    schedule = Schedule(config, seconds_used, time_share, first_epoch)
    stopper = _early_stopping(config)
    status = FINISHED
    with interrupts() as asked_to_end:
        recorder = Recorder(
            run, config, schedule, stopper, batches.images_per_step, state, asked_to_end
        )
        callbacks = [schedule, Epochs(validator, encoder), stopper, recorder]
        if config.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(str(run / "tensorboard")))
        try:
            if not done:
                _fit(model, batches, config, first_epoch, callbacks)
        except Interrupted:
            status = INTERRUPTED
        except TrainingFailed as error:
            print(error, file=sys.stderr)
            status = FAILED
    return _finish(config, dataset, model, encoder, recorder, status)


def _fit(model, batches, config, first_epoch, callbacks):
    first_step = first_epoch * config.steps_per_epoch
    model.fit(
        (batches[step] for step in range(first_step, config.total_steps)),
        steps_per_epoch=config.steps_per_epoch,
        initial_epoch=first_epoch,
        epochs=config.epochs,
        callbacks=callbacks,
        shuffle=False,  # batches come in their own seeded order
        verbose=0,
    )


def build_training_model(config):
    """The encoder of a config, and the compiled model that trains it.

    Args:
        config: A `Config`.

    Returns:
        `(encoder, model)`: with `sampling="classes"` one and the same, with "pairs" the model
        has two inputs.
    """
    keras.config.set_dtype_policy(choose_precision(config))
    encoder = build_encoder(config)
    keras.config.set_dtype_policy("float32")
    by_pairs = config.sampling == "pairs"
    model = build_siamese_network(encoder) if by_pairs else encoder
    metric = keras.metrics.MeanMetricWrapper(
        accuracy if by_pairs else batch_accuracy, name="accuracy"
    )
    model.compile(_optimizer(config), loss=build_loss(config), metrics=[metric])
    model.optimizer.build(model.trainable_variables)
    return encoder, model


def choose_precision(config):
    """The Keras dtype policy: `precision="auto"` takes bfloat16 where it was measured faster.

    That is on TensorFlow on processors that multiply bfloat16 themselves, unless images are tiny.
    """
    if config.precision != "auto":
        return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[config.precision]
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    able = "avx512_bf16" in flags or "amx_bf16" in flags
    able = able and keras.backend.backend() == "tensorflow" and config.image_size >= 64
    return "mixed_bfloat16" if able else "float32"


def _optimizer(config):
    optimizers = keras.optimizers
    if config.optimizer == "adamw":
        optimizer = optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer
    kinds = {"adam": optimizers.Adam, "rmsprop": optimizers.RMSprop, "sgd": optimizers.SGD}
    return kinds[config.optimizer](config.learning_rate)


def _early_stopping(config):
    """Keras's own; it also remembers the best weights of a run that is never stopped early."""
    return keras.callbacks.EarlyStopping(
        monitor=config.monitor,
        mode="min" if config.monitor == "val_loss" else "max",
        patience=config.patience or config.epochs,
        restore_best_weights=True,
    )


def restore(model, arrays):
    """Gives a compiled model the variables that a state holds.

    Args:
        model: From `build_training_model`, of the same config.
        arrays: Values of `state_variables(model)`, in that order.

    Raises:
        ValueError: If the state is of another network.
    """
    variables = state_variables(model)
    if [tuple(v.shape) for v in variables] != [a.shape for a in arrays]:
        raise ValueError("The saved state is of another network. Start a new run.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _finish(config, dataset, model, encoder, recorder, status):
    """The best epoch's encoder, rebuilt in float32 so that it runs anywhere and can be exported."""
    stopper = recorder.stopper
    if stopper.best_weights:
        model.set_weights(stopper.best_weights)
    elif status == FAILED:
        return Fitted(status, None, recorder.history, None)
    final = build_encoder(config)
    final.set_weights(encoder.get_weights())
    if config.whiten:
        final = widen_encoder(final, dataset, config.seed)
    best_epoch = stopper.best_epoch + 1 if stopper.best_weights else None
    return Fitted(status, final, recorder.history, best_epoch)
