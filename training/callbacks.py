"""What happens around the training steps: validation, progress, state on disk, stopping."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections import deque

import keras
import numpy as np
from tqdm import tqdm

from networks.embedding import embed
from siamese_network_funcs import distance_function
from training.validation import COLLAPSED, TrainingFailed

STOPPER = "best", "wait", "best_epoch", "stopped_epoch"  # the early stopping's state
IMAGES_PER_CLASS, MOST_IMAGES = 8, 2000  # from which the distances of classes are taken


class Interrupted(Exception):
    """Somebody pressed Ctrl-C or asked the process to end."""


@contextlib.contextmanager
def interrupts():
    """Yields a list that Ctrl-C or a request to end fills; a second one ends at once."""
    received = []

    def receive(number, frame):
        received.append(number)
        print("\nStopping after this step, then saving. Again to end at once.", file=sys.stderr)
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield received
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Feed(keras.utils.PyDataset):
    """The batches of one epoch after another, as Keras's `fit` takes them.

    Args:
        batches: `batches[step]`, a pair of inputs and targets.
        steps_per_epoch: How many make an epoch.

    Attributes:
        epoch: The epoch that is fed.
        ready: When each batch was ready, of those not trained on yet.
    """

    def __init__(self, batches, steps_per_epoch):
        super().__init__()
        self.batches, self.steps_per_epoch = batches, steps_per_epoch
        self.epoch, self.ready, self.ahead = 0, deque(), False

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, number):
        batch = self.batches[self.epoch * self.steps_per_epoch + number]
        self.ahead = threading.current_thread() is not threading.main_thread()
        self.ready.append(time.monotonic())
        return batch


class Epochs(keras.callbacks.Callback):
    """At the end of each epoch: validation into the logs, before any callback that reads them.

    Args:
        validator: A `Validator`.
        model: What is trained, two-input model or encoder.
        encoder: The encoder in it.
        batches: What it is trained on; pairs learn which classes lie near each other.
    """

    def __init__(self, validator, model, encoder, batches):
        super().__init__()
        self.validator, self.encoder, self.batches = validator, encoder, batches
        self.distance = None if model is encoder else distance_function(model)
        self.collapsed_before = False

    def on_train_batch_end(self, batch, logs=None):
        """Stops a training whose loss is not finite."""
        if not np.isfinite(logs["loss"]):
            raise TrainingFailed(f"The loss is {logs['loss']} at step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        """Adds val_* to the logs; stops a training whose embeddings have collapsed twice."""
        metrics, spread = self.validator.score(self.encoder, self.distance)
        logs.update(metrics)
        collapsed = spread < COLLAPSED
        if collapsed and self.collapsed_before:
            raise TrainingFailed(
                "The embeddings have collapsed: validation pairs are on average "
                f"{spread:.1%} as far apart as unrelated embeddings"
            )
        self.collapsed_before = collapsed
        if getattr(self.batches, "given", True) is None:
            self.batches.distances = self._class_distances()

    def _class_distances(self):
        """Distances between the mean embeddings of the training classes, (classes, classes)."""
        table = self.batches.table
        per_class = max(1, min(IMAGES_PER_CLASS, MOST_IMAGES // len(table.counts)))
        counts = np.minimum(table.counts, per_class)
        places = np.concatenate([np.arange(count) for count in counts])
        rows = table.rows[np.repeat(table.starts, counts) + places]
        embeddings = embed(self.encoder, self.batches.pixels, rows)
        means = np.add.reduceat(embeddings, np.cumsum(counts) - counts) / counts[:, None]
        return np.linalg.norm(means[:, None] - means, axis=2)


class Recorder(keras.callbacks.Callback):
    """After each epoch: history and state on disk, a line for the user. Comes last.

    Args:
        run: The `RunDirectory`.
        config: Its `Config`.
        schedule: The `Schedule`, which knows the steps.
        stopper: The `EarlyStopping`, whose state is saved and restored with the weights.
        feed: The `Feed`.
        state: What `RunDirectory.load_state` gave, or None.
        asked_to_end: What `interrupts` gives.
    """

    def __init__(self, run, config, schedule, stopper, feed, state, asked_to_end):
        super().__init__()
        self.run, self.config, self.schedule, self.stopper = run, config, schedule, stopper
        self.feed, self.asked_to_end = feed, asked_to_end
        self.history = state[1]["history"] if state else []
        self.best = (state[0].get("best"), state[1]["stopper"]) if state else None
        self.on_train_begin()

    def on_train_begin(self, logs=None):
        """Restores the early stopping, which forgets its best when a training begins."""
        if self.best:
            self.stopper.best_weights, values = self.best
            for name, value in values.items():
                setattr(self.stopper, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clock and bar."""
        self.feed.epoch = epoch
        self.feed.ready.clear()
        self.begin = self.step_end = time.monotonic()
        self.waited = 0.0
        self.bar = tqdm(total=self.config.steps_per_epoch, leave=False, disable=None, unit="step")

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar; ends cleanly when asked to."""
        self.steps, ready = batch + 1, self.feed.ready
        latest, own = ready[-1], ready.popleft()
        # TensorFlow makes batches while it trains; elsewhere the training waits for any of them.
        if batch:  # the first waits for TensorFlow to compile
            self.waited += max(0.0, (own if self.feed.ahead else latest) - self.step_end)
        shown = f"loss {logs['loss']:.4f}, {clock(self.schedule.seconds_left())} left"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        self.step_end = time.monotonic()
        if self.asked_to_end:
            self.bar.close()
            raise Interrupted

    def on_epoch_end(self, epoch, logs=None):
        """Writes history and state, then prints the epoch's line."""
        self.bar.close()
        seconds = time.monotonic() - self.begin
        numbers = {name: round(float(value), 6) for name, value in logs.items()}
        rate = self.steps * self.feed.batches.images_per_step / seconds
        extra = {"learning_rate": self.schedule.learning_rate(), "seconds": round(seconds, 2)}
        self.history.append({"epoch": epoch + 1, **numbers, **extra})
        self.run.write_history(self.history)
        self._save_state(epoch)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        waited = self.waited / (self.step_end - self.begin)
        steps = self.schedule.total_steps or self.config.total_steps
        print(
            f"epoch {epoch + 1}/{math.ceil(steps / self.config.steps_per_epoch)}  {shown}  "
            f"{rate:,.0f} images/s  {waited:.1%} waiting for data  "
            f"{clock(self.schedule.seconds_left())} left",
            flush=True,
        )
        if self.schedule.cut_at:
            print(f"Cut at step {self.schedule.cut_at} of {steps}: the time is over.", flush=True)

    def _save_state(self, epoch):
        stopper = {name: getattr(self.stopper, name) for name in STOPPER}
        stopper = {k: v if v is None else np.asarray(v).item() for k, v in stopper.items()}
        self.best = self.stopper.best_weights, stopper
        distances = getattr(self.feed.batches, "distances", None)
        self.run.save_state(
            {
                "model": [np.array(v) for v in self.model.variables],
                "optimizer": [np.array(v) for v in self.model.optimizer.variables],
                "best": self.stopper.best_weights or [],
                "distances": [] if distances is None else [distances],
            },
            {
                "epoch": epoch + 1,
                "done": bool(self.model.stop_training) or epoch + 1 >= self.config.epochs,
                "total_steps": self.schedule.total_steps,
                "history": self.history,
                "stopper": stopper,
            },
        )


def clock(seconds):
    """Minutes and seconds, as 3:07."""
    if not math.isfinite(seconds):
        return "?:??"
    seconds = max(0, int(seconds))
    return f"{seconds // 60}:{seconds % 60:02d}"
