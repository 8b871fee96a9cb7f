"""Keras's `fit` around the batches: config and data set -> trained encoder. Needs Keras."""

import dataclasses
import functools
import time
from pathlib import Path

import keras

import siamese_network_funcs as funcs
from networks.embedding import EMBED_BATCH, embed
from networks.encoders import build_encoder, load_weights
from networks.whitening import whiten
from pipeline.class_batches import ClassBatches, training_labels
from pipeline.pairs import PairBatches
from pipeline.splits import SPLITS
from training.callbacks import Interrupted, Recorder, interrupts
from training.feature_cache import FeatureCache
from training.fine_tuning import UpperHalf
from training.outputs import MOST_SCORED, write_outputs, write_pairs
from training.schedule import Schedule
from training.validation import TrainingFailed, Validator

SAVING_SECONDS = 8.0  # of max_minutes, for models, thresholds and figures at the end
SAVED_A_SECOND = 10_000_000  # weights of a model, its optimizer state and copies


@dataclasses.dataclass
class TrainedRun:
    """What a training came to."""

    path: Path  # the run directory
    history: dict  # name -> list, a number an epoch
    threshold: float  # below this distance a pair is the same
    encoder: keras.Model  # pixels -> embeddings, with the best epoch's weights, float32
    model: keras.Model  # two images -> distance


class WholeEncoder:
    """A whole encoder trained from pixels, as `fine_tuning.UpperHalf` is an upper half from maps.

    `encoder` takes `pixels`; `model` is what is trained on `batches`, if it `learns` at all: the
    encoder, or the two-input model around it. `whole` goes from raw pixels to embeddings.
    """

    learns = True

    def __init__(self, dataset, config, continues=False, own=None):
        self.config, self.pixels, self.own = config, dataset.pixels, own
        self.encoder, self.model = build_training_model(config, own)
        self.whole, rows = self.encoder, dataset.splits.train
        batches = PairBatches if config.sampling == "pairs" else ClassBatches
        self.batches = batches(dataset.index, dataset.pixels, rows, config)
        fresh = config.weights and not continues and own is None
        if fresh and not load_weights(self.encoder, config):

            def features(model, rows, view):
                return FeatureCache(model, dataset, config, rows, view)(rows)

            labels = training_labels(dataset.index)
            whiten(self.encoder, rows, labels, features, config.horizontal_flip)

    def finished(self):
        """The encoder rebuilt in float32, so that it runs anywhere."""
        if self.own is not None:
            return self.own
        encoder = build_encoder(self.config)
        encoder.set_weights(self.encoder.get_weights())
        return encoder


def fit_run(run, dataset, begin, *, encoder=None, loss=None, callbacks=()):
    """Trains, going on from the run's last state; leaves what a run leaves: a `TrainedRun`.

    Args:
        run, dataset: A `RunDirectory` and its `Dataset`.
        begin: `time.monotonic()` from which `max_minutes` count.
        encoder, loss, callbacks: Own parts, as for `train.train`.

    Raises:
        WeightsError: If pretrained weights cannot be had or do not fit.
        RunError: If a file cannot be written, or the state is damaged.
        TrainingFailed, Interrupted: If it ended early; the best weights so far are in the run.
    """
    config, (arrays, facts) = run.config, run.load_state() or ({}, {})
    write_pairs(run, dataset)
    with interrupts() as asked_to_end:
        task = _task(config, dataset, bool(arrays), encoder)
        summary = functools.partial(run.write_text, "model.txt")
        task.model.summary(80, print_fn=summary, expand_nested=True)
        validator = Validator(dataset, config, task.pixels, loss)
        limit = _limit(config, task, validator, begin)
        schedule = Schedule(config, *limit, facts.get("total_steps"))
        if task.learns and config.epochs:
            compile_model(task.model, config, loss)
        recorder = Recorder(run, task, validator, schedule, asked_to_end)
        if arrays:
            recorder.restore(arrays, facts)
        try:
            if not task.learns:
                print("ImageNet's classes tell these apart: nothing is trained (see distillation).")
            elif config.epochs and not facts.get("done"):
                task.model.fit(
                    recorder.feed,
                    initial_epoch=len(recorder.history),
                    epochs=config.epochs,
                    callbacks=[schedule, recorder, *callbacks],
                    shuffle=False,  # batches come in their own seeded order
                    verbose=0,
                )
        except (Interrupted, TrainingFailed):
            if recorder.best_weights:  # else it begins anew
                _finish(run, task, recorder, begin)
            raise
    trained = _finish(run, task, recorder, begin)
    run.mark_finished()
    print(
        "Next:",
        f"  python evaluate.py {run.path}",
        f"  python predict.py compare {run.path} ONE.jpg OTHER.jpg",
        f"  python export.py {run.path} --format onnx",
        sep="\n",
    )
    return trained


def _task(config, dataset, continues, own):
    """What is trained: the upper half of a pretrained network on classes, or a whole encoder."""
    halves = config.encoder.startswith("efficientnet_lite0") and config.sampling == "classes"
    if halves and config.weights and config.epochs and own is None:
        return UpperHalf(dataset, config)
    return WholeEncoder(dataset, config, continues, own)


def _limit(config, task, validator, begin):
    """`(deadline, seconds an epoch)`: first embeddings tell how long those to come take."""
    if config.max_minutes is None or not config.epochs:
        return float("inf"), 0.0
    rows, limit = validator.rows, 60 * config.max_minutes
    trained = whole = _seconds_per_image(task.encoder, task.pixels, rows)
    if task.whole is not task.encoder:
        whole = _seconds_per_image(task.whole, validator.dataset.pixels, rows[:EMBED_BATCH])
    an_epoch = trained * (len(rows) + len(task.batches.candidates))
    at_end = whole * (len(rows) + len(SPLITS) * MOST_SCORED)
    saving = SAVING_SECONDS + task.model.count_params() / SAVED_A_SECOND
    return begin + limit - min(an_epoch + at_end + saving, limit / 2), an_epoch


def _seconds_per_image(encoder, pixels, rows):
    embed(encoder, pixels, rows[:EMBED_BATCH])  # compiles
    start = time.monotonic()
    embed(encoder, pixels, rows)
    return (time.monotonic() - start) / len(rows)


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


def compile_model(model, config, loss=None):
    """Compiles what is trained with a config's loss, or one's own, and optimizer."""
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(weight_decay=config.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    else:
        optimizer = keras.optimizers.get(config.optimizer)
    optimizer.learning_rate = config.learning_rate
    share = funcs.accuracy if config.sampling == "pairs" else funcs.batch_accuracy
    threshold = config.accuracy_distance
    metric = keras.metrics.MeanMetricWrapper(share, name="accuracy", threshold=threshold)
    model.compile(optimizer, loss=loss or funcs.build_loss(config), metrics=[metric])
    model.optimizer.build(model.trainable_variables)


def _finish(run, task, recorder, begin):
    """Writes what the run leaves, with the best epoch's weights: a `TrainedRun`."""
    if recorder.best_weights:
        task.model.set_weights(recorder.best_weights)
    encoder = task.finished()
    model = funcs.build_siamese_network(encoder, run.config.distance)
    if run.config.sampling == "pairs":
        model.get_layer("distance").set_weights(task.model.get_layer("distance").get_weights())
    threshold = write_outputs(run, recorder, model, encoder)
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes in all. Run directory: {run.path}")
    names = recorder.history[0] if recorder.history else ()
    history = {name: [row[name] for row in recorder.history] for name in names}
    return TrainedRun(run.path, history, threshold, encoder, model)
