"""Keras's `fit` around the batches: config and data set -> trained encoder. Needs Keras."""

import dataclasses
import functools
import sys
from pathlib import Path

import keras
import numpy as np

import siamese_network_funcs as funcs
from networks.embedding import embed
from networks.encoders import build_encoder, load_weights, pretrained_layers
from networks.whitening import features_of, fit_head
from pipeline.batches import BATCHES
from training.callbacks import Epochs, Interrupted, Recorder, Schedule, TrainingFailed, interrupts
from training.devices import over_whole_batch, part

FINISHED, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses
MOST_WHITENED = 10_000  # images; more change nothing
NEW = {"epoch": 0, "done": False, "time_share": 0.0, "seconds_used": 0.0}  # facts of no state


@dataclasses.dataclass
class Fitted:
    """What a training came to."""

    status: int  # FINISHED, FAILED or INTERRUPTED
    model: keras.Model | None  # the two-input one with the best epoch's weights, float32
    encoder: keras.Model | None  # the encoder in it
    history: list  # of dicts, one an epoch
    best_epoch: int | None  # whose weights these are, from 1; None before the first is over


def fit_encoder(run, config, dataset, validator, seconds_used):
    """Trains an encoder, going on from the run's last state where it has one: a `Fitted`.

    `seconds_used` are those of `max_minutes` that are gone.

    Raises:
        WeightsError: If pretrained weights cannot be had or do not fit.
    """
    encoder, model = build_training_model(config)
    batches = BATCHES[config.sampling](dataset.index, dataset.pixels, dataset.splits.train, config)
    batches.part = part(len(batches[0][1]))
    state = run.load_state()
    arrays, facts = state or ({}, NEW)
    if state:
        print(f"Continuing after epoch {facts['epoch']}.")
        restore(model.variables, arrays["model"])
    elif config.weights:
        load_weights(encoder, config)
    schedule = Schedule(config, seconds_used + facts["seconds_used"], facts)
    stopper = _early_stopping(config)
    status = FINISHED
    with interrupts() as asked_to_end:
        per_step = batches.images_per_step
        recorder = Recorder(run, config, schedule, stopper, per_step, state, asked_to_end)
        callbacks = [schedule, Epochs(validator, model, encoder), stopper, recorder]
        if config.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(str(run / "tensorboard")))
        try:
            for first, last, frozen in _phases(config, facts):
                compile_model(model, encoder, config, frozen)
                if first not in (0, config.frozen_epochs):
                    restore(model.optimizer.variables, arrays["optimizer"])
                steps = range(first * config.steps_per_epoch, last * config.steps_per_epoch)
                stream = recorder.watched(batches[step] for step in steps)
                _fit(model, stream, config, first, last, callbacks)
                if model.stop_training:
                    break
        except Interrupted:
            status = INTERRUPTED
        except TrainingFailed as error:
            print(error, file=sys.stderr)
            status = FAILED
    return _finish(config, dataset, model, encoder, recorder, status)


def _phases(config, facts):
    """`(first epoch, last epoch, whether pretrained weights stay)` of each call of Keras's fit."""
    begin = config.epochs if facts["done"] else facts["epoch"]
    frozen = min(config.frozen_epochs, config.epochs)
    phases = [(begin, frozen, True), (max(begin, frozen), config.epochs, False)]
    return [phase for phase in phases if phase[0] < phase[1]]


def _fit(model, stream, config, first_epoch, last_epoch, callbacks):
    model.fit(
        stream,
        steps_per_epoch=config.steps_per_epoch,
        initial_epoch=first_epoch,
        epochs=last_epoch,
        callbacks=callbacks,
        shuffle=False,  # batches come in their own seeded order
        verbose=0,
    )


def build_training_model(config):
    """The encoder of a config, and the model that trains it.

    With `sampling="classes"` they are one and the same; with "pairs" the model has two inputs.
    """
    keras.config.set_dtype_policy(choose_precision(config))
    encoder = build_encoder(config)
    keras.config.set_dtype_policy("float32")
    if config.sampling == "classes":
        return encoder, encoder
    return encoder, funcs.build_siamese_network(encoder, config.distance)


def compile_model(model, encoder, config, frozen=False):
    """Compiles what `build_training_model` gave for a phase of its training, optimizer and all.

    With `frozen`, pretrained weights stay as they are.
    """
    for layer in pretrained_layers(encoder):
        layer.trainable = not frozen
    metric = funcs.accuracy if config.sampling == "pairs" else funcs.batch_accuracy
    metric = functools.partial(metric, threshold=config.accuracy_distance)
    loss, metric = over_whole_batch(model, funcs.build_loss(config), metric)
    metric = keras.metrics.MeanMetricWrapper(metric, name="accuracy")
    model.compile(_optimizer(config), loss=loss, metrics=[metric])
    model.optimizer.build(model.trainable_variables)


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
    multiplies = "avx512_bf16" in flags or "amx_bf16" in flags
    on_tensorflow = keras.backend.backend() == "tensorflow"
    able = multiplies and on_tensorflow and min(config.image_shape[:2]) >= 40
    return "mixed_bfloat16" if able else "float32"


def _optimizer(config):
    if config.optimizer != "adamw":
        optimizer = keras.optimizers.get(config.optimizer)
        optimizer.learning_rate = config.learning_rate
        return optimizer
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _early_stopping(config):
    """Keras's own; it also remembers the best weights of a run that is never stopped early."""
    return keras.callbacks.EarlyStopping(
        monitor=config.monitor,
        mode="min" if config.monitor == "val_loss" else "max",
        patience=config.patience or config.epochs,
        restore_best_weights=True,
    )


def restore(variables, arrays):
    """Gives a model's or optimizer's variables the arrays of a state, in the same order.

    Raises:
        ValueError: If the state is of another network.
    """
    if [tuple(v.shape) for v in variables] != [a.shape for a in arrays]:
        raise ValueError("The saved state is of another network. Start a new run.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _finish(config, dataset, model, encoder, recorder, status):
    """The best epoch's model, rebuilt in float32 so that it runs anywhere and can be exported."""
    stopper = recorder.stopper
    if stopper.best_weights:
        model.set_weights(stopper.best_weights)
    elif status != FINISHED:  # in the first epoch: it begins anew
        return Fitted(status, None, None, recorder.history, None)
    final = build_encoder(config)
    final.set_weights(encoder.get_weights())
    if config.whiten:
        whiten(final, dataset)
    siamese = funcs.build_siamese_network(final, config.distance)
    if model is not encoder:
        siamese.get_layer("distance").set_weights(model.get_layer("distance").get_weights())
    best_epoch = stopper.best_epoch + 1 if stopper.best_weights else None
    return Fitted(status, siamese, final, recorder.history, best_epoch)


def whiten(encoder, dataset):
    """Fits the head of an encoder to the training images of a data set, a sample of very many."""
    rows = dataset.splits.train
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_WHITENED)).astype(int)]
    features = embed(features_of(encoder), dataset.pixels, rows)
    fit_head(encoder, features, dataset.index.labels[rows])
