"""What happens around the training steps: validation, progress, state on disk, stopping."""

import contextlib
import math
import signal
import sys
import threading
import time

import keras
import numpy as np
from tqdm import tqdm

from evaluation.verification import all_distances, chunks
from networks.embedding import embed
from pipeline.pairs import NEAREST
from siamese_network_funcs import distance_function
from training.validation import COLLAPSED, TrainingFailed


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C or asked the process to end."""


@contextlib.contextmanager
def interrupts():
    """Yields a list that Ctrl-C or a request to end fills; a second one ends at once."""
    received = []

    def receive(number, frame):
        received.append(number)
        print("\nStopping after this step, then saving. Again to end at once.", file=sys.stderr)
        signal.signal(number, signal.SIG_DFL)

    in_main = threading.current_thread() is threading.main_thread()  # signals are its own
    watched = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, receive) for number in watched}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Feed(keras.utils.PyDataset):
    """The batches of one epoch, `batches[step]`, as Keras's `fit` takes them."""

    def __init__(self, batches, steps_per_epoch):
        # With one, batches go through tf.data's autotuning, whose thread sleeps up to half a minute
        # before an iterator is freed: between epochs, and at exit.
        super().__init__(workers=2)
        self.batches, self.steps_per_epoch, self.epoch = batches, steps_per_epoch, 0

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, number):
        return self.batches[self.epoch * self.steps_per_epoch + number]


class Recorder(keras.callbacks.Callback):
    """After each epoch: validation, history and state on disk, a line for the user.

    Stops a training that goes astray, makes no progress, or is asked to end. It adds val_* to the
    logs, so it comes before any callback that reads them. `task` is a `fit.WholeEncoder` or a
    `fine_tuning.UpperHalf`; `asked_to_end` is what `interrupts` gives.
    """

    best_weights, collapsed_before = None, False

    def __init__(self, run, task, validator, schedule, asked_to_end):
        super().__init__()
        self.run, self.config, self.schedule = run, run.config, schedule
        self.task, self.validator, self.asked_to_end = task, validator, asked_to_end
        self.feed, self.history = Feed(task.batches, self.config.steps_per_epoch), []
        siamese = self.config.sampling == "pairs"
        self.distance = distance_function(task.model) if siamese else None

    @property
    def best_epoch(self):
        """The first that the config's `monitor` was best after, from 1; None before any."""
        sign = 1 if self.config.monitor == "val_loss" else -1
        rows = [(sign * row[self.config.monitor], row["epoch"]) for row in self.history]
        return min(rows)[1] if rows else None

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clock and bar."""
        self.feed.epoch, self.begin = epoch, time.monotonic()
        self.bar = tqdm(total=self.config.steps_per_epoch, leave=False, disable=None, unit="step")

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar; ends where the loss is not finite, and cleanly when asked to."""
        if not np.isfinite(logs["loss"]):
            raise TrainingFailed(f"The loss is {logs['loss']} at step {batch + 1}")
        self.steps = batch + 1
        shown = f"loss {logs['loss']:.4f}, {self.schedule.time_left()} left"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if self.asked_to_end:
            self.bar.close()
            again = f"python train.py {self.run.path}"
            if self.config.own_parts:
                again = f"train('{self.run.path}', data, encoder=..., loss=...) in Python"
            raise Interrupted(f"Interrupted. Continue with: {again}")

    def on_epoch_end(self, epoch, logs=None):
        """Validates, writes history and state, then prints the epoch's line."""
        self.bar.close()
        self._validate(logs)
        seconds = time.monotonic() - self.begin
        numbers = {name: round(float(value), 6) for name, value in logs.items()}
        extra = {"learning_rate": self.schedule.learning_rate(), "seconds": round(seconds, 2)}
        self.history.append({"epoch": epoch + 1, **numbers, **extra})
        if self.best_epoch == epoch + 1:
            self.best_weights = self.model.get_weights()
        if epoch + 1 - self.best_epoch >= (self.config.patience or math.inf):
            self.model.stop_training = True
        self.run.write_history(self.history)
        self._save_state(epoch + 1)
        steps = self.schedule.most_steps
        print(
            f"epoch {epoch + 1}/{math.ceil(steps / self.config.steps_per_epoch)}",
            *(f"{name} {value:.4f}" for name, value in numbers.items()),
            f"{self.steps * self.task.batches.images_per_step / seconds:,.0f} images/s",
            f"{self.schedule.time_left()} left",
            sep="  ",
            flush=True,
        )
        if self.schedule.cut_at:
            print(f"Cut at step {self.schedule.cut_at} of {steps}: the time is over.", flush=True)

    def _validate(self, logs):
        """Adds val_* to the logs; stops a training whose embeddings have collapsed twice."""
        metrics, spread = self.validator.score(self.task.encoder, self.distance)
        logs.update(metrics)
        if spread < COLLAPSED and self.collapsed_before:
            raise TrainingFailed(
                "The embeddings have collapsed: validation pairs are on average "
                f"{spread:.1%} as far apart as unrelated embeddings"
            )
        self.collapsed_before = spread < COLLAPSED
        if len(self.task.batches.candidates):
            self.task.batches.neighbours = nearest_of_other_classes(self.task)

    def restore(self, arrays, facts):
        """Goes on from what was saved after an epoch; the model is compiled."""
        print(f"Continuing after epoch {facts['epoch']}.")
        variables = [*self.task.model.variables, *self.task.model.optimizer.variables]
        saved = [*arrays["model"], *arrays["optimizer"]]
        for variable, array in zip(variables, saved, strict=True):
            variable.assign(array)
        self.task.batches.neighbours = arrays.get("neighbours", [None])[0]
        self.best_weights, self.history = arrays["best"], facts["history"]

    def _save_state(self, epochs):
        neighbours = self.task.batches.neighbours
        self.run.save_state(
            {
                "model": [np.array(v) for v in self.model.variables],
                "optimizer": [np.array(v) for v in self.model.optimizer.variables],
                "best": self.best_weights,
                "neighbours": [] if neighbours is None else [neighbours],
            },
            {
                "epoch": epochs,
                "done": bool(self.model.stop_training) or epochs >= self.config.epochs,
                "total_steps": self.schedule.total_steps,
                "history": self.history,
            },
        )


def nearest_of_other_classes(task):
    """`PairBatches.neighbours`: the nearest among many, as the nearest of all may be mistakes.

    Schroff, Kalenichenko & Philbin, "FaceNet", 2015.
    """
    batches = task.batches
    labels = batches.index.labels[batches.candidates]
    embeddings = embed(task.encoder, task.pixels, batches.candidates)
    count, nearest = min(NEAREST, len(labels) - np.bincount(labels).max()), []
    for part in chunks(len(labels), len(labels)):
        distances = all_distances(embeddings[part], embeddings)
        distances[labels[part][:, None] == labels] = np.inf
        nearest.append(np.argpartition(distances, count - 1, axis=1)[:, :count])
    return batches.candidates[np.column_stack([np.arange(len(labels)), np.concatenate(nearest)])]
