"""Keras's `fit` around the batches: config and data set -> trained encoder. Needs Keras."""

import dataclasses
import sys
import time
from pathlib import Path

import keras

import siamese_network_funcs as funcs
from networks.encoders import build_encoder, load_weights
from networks.whitening import whiten
from pipeline.class_batches import ClassBatches, training_labels
from pipeline.pairs import PairBatches
from training.callbacks import Feed, Interrupted, Recorder, Validation, interrupts
from training.fine_tuning import UpperHalf
from training.schedule import Schedule
from training.validation import TrainingFailed, Validator

FINISHED, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses
SAVING_SECONDS = 4.0  # of max_minutes, for models and figures at the end
BEGINNING = {}, {"epoch": 0, "done": False, "total_steps": None, "history": []}
ADVICE = "Try a lower learning_rate, unit_length=True, or another loss or seed."


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
        batches = PairBatches if config.sampling == "pairs" else ClassBatches
        self.batches = batches(dataset.index, dataset.pixels, dataset.splits.train, config)
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

    def seconds_at_end(self):
        """What the end takes beside what validations tell of it."""
        return 0.0


def fit_encoder(run, config, dataset, begin, *, encoder=None, loss=None, callbacks=()):
    """Trains an encoder, going on from the run's last state where it has one: a `Fitted`.

    `begin` is `time.monotonic()` at the start of the command, from which `max_minutes` count.
    `encoder`, `loss` and `callbacks` are own parts, as `train.train` takes them.

    Raises:
        WeightsError: If pretrained weights cannot be had or do not fit.
    """
    state = run.load_state() or BEGINNING
    arrays, facts = state
    status, reason = FINISHED, ""
    with interrupts() as asked_to_end:
        task = _task(config, dataset, bool(arrays), encoder)
        run.write_text("model.txt", _summary(task.model))
        if arrays:
            print(f"Continuing after epoch {facts['epoch']}.")
            _restore(task.model.variables, arrays["model"])
            task.batches.distances = arrays.get("distances", [None])[0]
        validator = Validator(dataset, config, task.pixels, loss)
        limit = _limit(config, task, validator, begin)
        schedule = Schedule(config, *limit, total_steps=facts["total_steps"])
        feed = Feed(task.batches, config.steps_per_epoch)
        recorder = Recorder(run, config, schedule, feed, state, asked_to_end)
        callbacks = [schedule, Validation(validator, task), recorder, *callbacks]
        try:
            if not facts["done"] and config.epochs:
                compile_model(task.model, config, loss)
                if arrays:
                    _restore(task.model.optimizer.variables, arrays["optimizer"])
                feed.epoch = facts["epoch"]
                task.model.fit(
                    feed,
                    initial_epoch=facts["epoch"],
                    epochs=config.epochs,
                    callbacks=callbacks,
                    shuffle=False,  # batches come in their own seeded order
                    verbose=0,
                )
        except Interrupted:
            status = INTERRUPTED
        except TrainingFailed as error:
            saved = "The last good weights are in the run directory." if recorder.history else ""
            status, reason = FAILED, f"{error}. {ADVICE} {saved}".rstrip()
            print(reason, file=sys.stderr)
    if status != FINISHED and recorder.best_weights is None:  # in the first epoch: it begins anew
        return Fitted(status, None, None, [], None, reason)
    return Fitted(status, *_finish(config, task, recorder), reason)


def _task(config, dataset, continues, own):
    """What is trained: the upper half of a pretrained network on classes, or a whole encoder."""
    halves = config.encoder.startswith("efficientnet_lite0") and config.sampling == "classes"
    if halves and config.weights and config.epochs and own is None:
        return UpperHalf(dataset, config)
    return WholeEncoder(dataset, config, continues, own)


def _summary(model):
    """Keras's summary of a model, as text."""
    lines = []
    model.summary(
        100, print_fn=lambda line, line_break=None: lines.append(line), expand_nested=True
    )
    return "\n".join(lines) + "\n"


def _limit(config, task, validator, begin):
    """`(deadline, seconds an epoch)`: a first validation tells what one takes."""
    if config.max_minutes is None or not config.epochs:
        return float("inf"), 0.0
    start = time.monotonic()
    validator.embed(task.encoder)
    seconds = time.monotonic() - start
    closing = SAVING_SECONDS + 4 * seconds + task.seconds_at_end()
    return begin + 60 * config.max_minutes - min(closing, 30 * config.max_minutes), seconds


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


def compile_model(model, config, loss=None):
    """Compiles what is trained with a config's loss, or one's own, and optimizer."""
    metric = funcs.accuracy if config.sampling == "pairs" else funcs.batch_accuracy
    at = {"threshold": config.accuracy_distance}
    metric = keras.metrics.MeanMetricWrapper(metric, name="accuracy", **at)
    model.compile(_optimizer(config), loss=loss or funcs.build_loss(config), metrics=[metric])
    model.optimizer.build(model.trainable_variables)


def choose_precision(config):
    """The Keras dtype policy: `precision="auto"` takes bfloat16 where it was measured faster.

    That is on TensorFlow on processors that multiply bfloat16 themselves, unless images are tiny.
    """
    faster = config.precision == "bfloat16"
    processor = Path("/proc/cpuinfo")
    if config.precision == "auto" and processor.exists():
        multiplies = any(flag in processor.read_text() for flag in ("avx512_bf16", "amx_bf16"))
        large = min(config.image_shape[:2]) >= 40
        faster = multiplies and large and keras.backend.backend() == "tensorflow"
    return "mixed_bfloat16" if faster else "float32"


def _optimizer(config):
    if config.optimizer != "adamw":
        optimizer = keras.optimizers.get(config.optimizer)
        optimizer.learning_rate = config.learning_rate
        return optimizer
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _restore(variables, arrays):
    """Gives a model's or optimizer's variables the arrays of a state, in the same order."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _finish(config, task, recorder):
    """The two-input model and the encoder of the best epoch, its history and its number."""
    if recorder.best_weights:
        task.model.set_weights(recorder.best_weights)
    final = task.finished()
    siamese = funcs.build_siamese_network(final, config.distance)
    if config.sampling == "pairs":
        siamese.get_layer("distance").set_weights(task.model.get_layer("distance").get_weights())
    return siamese, final, recorder.history, recorder.best_epoch
