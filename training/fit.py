"""Keras's `fit` around the batches: config and data set -> trained encoder. Needs Keras."""

import dataclasses
import sys
import time
from pathlib import Path

import keras

import siamese_network_funcs as funcs
from networks.embedding import embed
from networks.encoders import HEAD, build_encoder, load_weights
from networks.losses import relational_distillation
from networks.whitening import whiten
from pipeline.class_batches import ClassBatches, training_labels
from pipeline.pairs import PairBatches
from training.callbacks import Epochs, Feed, Interrupted, Recorder, interrupts
from training.devices import check_batch_size, over_whole_batch
from training.fine_tuning import UpperHalf
from training.schedule import Schedule
from training.validation import TrainingFailed, Validator

FINISHED, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses
TIMED = 32  # images on which the whole network is timed
MOST_AT_END = 1600  # images that it embeds after the training, beside those of validation
SAVING_SECONDS = 4.0  # of max_minutes, for models and figures at the end
NO_STATE = {"epoch": 0, "done": False, "total_steps": None}


@dataclasses.dataclass
class Fitted:
    """What a training came to."""

    status: int  # FINISHED, FAILED or INTERRUPTED
    model: keras.Model | None  # the two-input one with the best epoch's weights, float32
    encoder: keras.Model | None  # the encoder in it
    history: list  # of dicts, one an epoch
    best_epoch: int | None  # whose weights these are, from 1; None before the first is over
    reason: str = ""  # why it failed


class WholeEncoder:
    """A whole encoder trained from pixels, as `fine_tuning.UpperHalf` is an upper half from maps.

    Attributes:
        encoder: From pixels to embeddings.
        model: What is trained: the encoder, or the two-input model around it.
        pixels: What it takes of each row.
        batches: What it is trained on.
    """

    def __init__(self, dataset, config, continues=False, own=None):
        self.config, self.pixels, self.own = config, dataset.pixels, own
        self.encoder, self.model = build_training_model(config, own)
        given = dataset.index, dataset.pixels, dataset.splits.train, config
        batches = PairBatches if config.sampling == "pairs" else ClassBatches
        self.batches = batches(*given)
        pairs = config.sampling == "pairs"
        check_batch_size(2 * self.batches.half if pairs else self.batches.images_per_step)
        fresh = config.weights and not continues and own is None
        if fresh and not load_weights(self.encoder, config):
            labels = training_labels(dataset.index)
            rows = dataset.splits.train
            whiten(self.encoder, dataset.pixels, rows, labels, config.horizontal_flip)

    def finished(self):
        """The encoder rebuilt in float32, so that it runs anywhere."""
        if self.own is not None:
            return self.own
        encoder = build_encoder(self.config)
        encoder.set_weights(self.encoder.get_weights())
        return encoder


def fit_encoder(run, config, dataset, begin, *, encoder=None, loss=None, callbacks=()):
    """Trains an encoder, going on from the run's last state where it has one: a `Fitted`.

    `begin` is `time.monotonic()` at the start of the command, from which `max_minutes` count.
    `encoder`, `loss` and `callbacks` are own parts, as `train.train` takes them.

    Raises:
        WeightsError: If pretrained weights cannot be had or do not fit.
    """
    state = run.load_state()
    arrays, facts = state or ({}, NO_STATE)
    halves = config.encoder.startswith("efficientnet_lite0") and config.sampling == "classes"
    if halves and config.weights and config.epochs and encoder is None:
        task = UpperHalf(dataset, config)
        task.model = task.encoder
    else:
        task = WholeEncoder(dataset, config, continues=bool(state), own=encoder)
    run.write("model.txt", lambda path: path.write_text(_summary(task.model)))
    if state:
        print(f"Continuing after epoch {facts['epoch']}.")
        restore(task.model.variables, arrays["model"])
        task.batches.distances = arrays.get("distances", [None])[0]
    validator = Validator(dataset, config, task.pixels, loss)
    stopper = _early_stopping(config)
    schedule = _schedule(config, task, dataset, validator, begin, facts)
    feed, status, reason = Feed(task.batches, config.steps_per_epoch), FINISHED, ""
    with interrupts() as asked_to_end:
        recorder = Recorder(run, config, schedule, stopper, feed, state, asked_to_end)
        epochs = Epochs(validator, task.model, task.encoder, task.batches)
        callbacks = [schedule, epochs, stopper, recorder, *callbacks]
        try:
            for first, last, frozen in _phases(config, facts):
                compile_model(task.model, task.encoder, config, frozen, loss)
                if first not in (0, config.frozen_epochs):
                    restore(task.model.optimizer.variables, arrays["optimizer"])
                feed.epoch = first
                _fit(task.model, feed, first, last, callbacks)
                if task.model.stop_training:
                    break
        except Interrupted:
            status = INTERRUPTED
        except TrainingFailed as error:
            saved = "The last good weights are in the run directory." if recorder.history else ""
            reason = f"{error}. {ADVICE} {saved}".rstrip()
            print(reason, file=sys.stderr)
            status = FAILED
    return dataclasses.replace(_finish(config, task, recorder, status), reason=reason)


ADVICE = (
    "Try a lower learning_rate, a larger warmup_share, unit_length=True, or another loss or seed."
)


def _summary(model):
    """Keras's own summary of a model, as text."""
    lines = []
    model.summary(
        100, print_fn=lambda line, line_break=None: lines.append(line), expand_nested=True
    )
    return "\n".join(lines) + "\n"


def _schedule(config, task, dataset, validator, begin, facts):
    """The `Schedule`; with a time limit, a first validation tells what one takes."""
    deadline, seconds = float("inf"), 0.0
    if config.max_minutes is not None and config.epochs:
        start = time.monotonic()
        validator.embed(task.encoder)
        seconds = time.monotonic() - start
        closing = SAVING_SECONDS + 4 * seconds
        if isinstance(task, UpperHalf):  # at the end the whole network embeds
            rows = validator.rows[:TIMED]
            embed(task.whole, dataset.pixels, rows)  # compiles
            start = time.monotonic()
            embed(task.whole, dataset.pixels, rows)
            per_image = (time.monotonic() - start) / len(rows)
            closing += per_image * (len(validator.rows) + MOST_AT_END)
        deadline = begin + 60 * config.max_minutes - min(closing, 30 * config.max_minutes)
    return Schedule(config, deadline, seconds, facts["total_steps"])


def _phases(config, facts):
    """`(first epoch, last epoch, whether pretrained weights stay)` of each call of Keras's fit."""
    begin = config.epochs if facts["done"] else facts["epoch"]
    frozen = min(config.frozen_epochs, config.epochs)
    phases = [(begin, frozen, True), (max(begin, frozen), config.epochs, False)]
    return [phase for phase in phases if phase[0] < phase[1]]


def _fit(model, feed, first_epoch, last_epoch, callbacks):
    model.fit(
        feed,
        initial_epoch=first_epoch,
        epochs=last_epoch,
        callbacks=callbacks,
        shuffle=False,  # batches come in their own seeded order
        verbose=0,
    )


def build_training_model(config, encoder=None):
    """The encoder of a config, or one's own, and the model that trains it.

    With `sampling="classes"` they are one and the same; with "pairs" the model has two inputs.
    """
    keras.config.set_dtype_policy(choose_precision(config))
    encoder = build_encoder(config) if encoder is None else encoder
    keras.config.set_dtype_policy("float32")
    if config.sampling == "classes":
        return encoder, encoder
    return encoder, funcs.build_siamese_network(encoder, config.distance)


def compile_model(model, encoder, config, frozen=False, loss=None):
    """Compiles what `build_training_model` gave for a phase of its training, optimizer and all.

    With `frozen`, pretrained weights stay as they are.
    """
    for layer in encoder.layers:
        layer.trainable = not frozen or layer.name == HEAD
    metric = funcs.accuracy if config.sampling == "pairs" else funcs.batch_accuracy
    loss = loss or funcs.build_loss(config)
    if model.inputs[0].name == "maps":
        loss, metric = _distilled(loss, config.distillation), _of_classes(metric)
    loss, metric = over_whole_batch(model, loss, metric)
    at = {"threshold": config.accuracy_distance}
    metric = keras.metrics.MeanMetricWrapper(metric, name="accuracy", **at)
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


def _distilled(loss, weight):
    """A loss on targets (batch, 1 + d): the class, and the embedding of the pretrained network."""

    def total(targets, embeddings):
        known = relational_distillation(targets[:, 1:], embeddings)
        return loss(targets[:, 0], embeddings) + weight * known

    return total


def _of_classes(metric):
    return lambda targets, embeddings, **settings: metric(targets[:, 0], embeddings, **settings)


def _finish(config, task, recorder, status):
    """The best epoch's encoder, finished, and the two-input model around it."""
    stopper = recorder.stopper
    if stopper.best_weights:
        task.model.set_weights(stopper.best_weights)
    elif status != FINISHED:  # in the first epoch: it begins anew
        return Fitted(status, None, None, recorder.history, None)
    final = task.finished()
    siamese = funcs.build_siamese_network(final, config.distance)
    if task.model is not task.encoder:
        siamese.get_layer("distance").set_weights(task.model.get_layer("distance").get_weights())
    best_epoch = stopper.best_epoch + 1 if stopper.best_weights else None
    return Fitted(status, siamese, final, recorder.history, best_epoch)
