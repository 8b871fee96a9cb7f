"""What happens around the training steps: schedule, validation, progress, state, stopping."""

import contextlib
import math
import signal
import threading
import time
from collections import deque

import keras
import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from evaluation import scores
from networks.embedding import embed
from pipeline.batches import BATCHES
from siamese_network_funcs import build_loss, distance_function
from training.devices import agreed

VAL_BATCHES = 8  # over which val_loss is averaged when classes are sampled
VAL_WAYS, VAL_TRIALS = 20, 1000  # of val_one_shot
CLOSING_SECONDS = 20.0  # of max_minutes, for what comes after the last step
HAIR = 1e-3  # embeddings that all lie this close together have collapsed
STOPPER = "best", "wait", "best_epoch", "stopped_epoch"  # the early stopping's state


class TrainingFailed(RuntimeError):
    """The training cannot go on; the message says what happened and what to try."""

    def __init__(self, what):
        super().__init__(
            f"{what}. Try a lower learning_rate, a larger warmup_share, unit_length=True, or "
            "another loss or seed. The last good weights are in the run directory."
        )


class Interrupted(Exception):
    """Somebody pressed Ctrl-C or asked the process to end."""


@contextlib.contextmanager
def interrupts():
    """Yields a list that Ctrl-C or a request to end fills; a second one ends at once."""
    received = []

    def receive(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Validator:
    """Scores an encoder on the validation images: each embedded once, the rest is arithmetic."""

    def __init__(self, dataset, config):
        self.dataset, self.config = dataset, config
        self.rows = dataset.splits.val
        self.labels = dataset.index.labels[self.rows]
        rng = np.random.default_rng([config.seed, 2])
        pairs = dataset.given_pairs(self.rows) or scores.draw_verification_pairs(self.labels, rng)
        self.left, self.right, self.same = pairs
        self.trials = scores.draw_trials(self.labels, VAL_WAYS, 1, VAL_TRIALS, rng)
        self.loss = build_loss(config)
        if config.sampling == "classes":
            batches = BATCHES["classes"](dataset.index, None, self.rows, config)
            drawn = [batches.rows(step) for step in range(VAL_BATCHES)]
            self.batches = [np.searchsorted(self.rows, rows) for rows in drawn]

    def distances(self, encoder, distance=None):
        """Distances of the validation pairs, (pairs,)."""
        embeddings = embed(encoder, self.dataset.pixels, self.rows)
        return scores.pair_distances(embeddings, self.left, self.right, distance)

    def score(self, encoder, distance=None):
        """Validation metrics of an encoder, with a distance as from `distance_function`.

        Returns:
            `(metrics, spread)`: a dict of val_loss, val_accuracy, val_auc, val_one_shot, and
            the mean distance of the pairs.

        Raises:
            TrainingFailed: If an embedding is not finite.
        """
        embeddings = embed(encoder, self.dataset.pixels, self.rows)
        if not np.isfinite(embeddings).all():
            raise TrainingFailed("Embeddings are not finite")
        distances = scores.pair_distances(embeddings, self.left, self.right, distance)
        trial_distances = scores.trial_distances(embeddings, self.trials, distance)
        one_shot = scores.few_shot_scores(trial_distances, self.trials.answers)
        metrics = {
            "val_loss": self._loss(embeddings, distances),
            "val_accuracy": balanced_accuracy(self.same, distances, self.config.accuracy_distance),
            "val_auc": roc_auc_score(self.same, -distances),
            "val_one_shot": one_shot["accuracy"],
        }
        return metrics, float(distances.mean())

    def _loss(self, embeddings, distances):
        if self.config.sampling == "pairs":
            same = self.same.astype(np.float32)[:, None]
            return float(self.loss(same, distances.astype(np.float32)[:, None]))
        losses = [self.loss(self.labels[rows], embeddings[rows]) for rows in self.batches]
        return float(np.mean([float(loss) for loss in losses]))


class Schedule(keras.callbacks.Callback):
    """Sets the learning rate from the share of the training that is done; keeps the time limit.

    The share is that of the steps or of the minutes, whichever is further, so that a run told
    10 minutes ends annealed at 10 minutes.

    Args:
        config: A `Config`.
        seconds_used: Of `max_minutes`, before the first step.
        facts: Done before, when continuing: `time_share` (of the training's time) and `epoch`s.
    """

    def __init__(self, config, seconds_used, facts):
        super().__init__()
        self.config = config
        self.time_share = self.first_time_share = facts["time_share"]
        self.progress = max(self.time_share, facts["epoch"] / config.epochs)
        self.first_progress = self.progress
        self.begin, self.seconds_before = time.monotonic(), seconds_used
        self.seconds = math.inf
        if config.max_minutes is not None:
            budget = 60 * config.max_minutes
            self.seconds = max(1.0, budget - seconds_used - min(CLOSING_SECONDS, 0.3 * budget))

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch's steps start, and how fast pretrained weights move."""
        config = self.config
        self.first_step = epoch * config.steps_per_epoch
        fine_tuned = 0 < config.frozen_epochs <= epoch
        self.highest = config.learning_rate * (config.fine_tune_rate if fine_tuned else 1.0)

    def on_train_batch_begin(self, batch, logs=None):
        """Sets this step's learning rate."""
        self._advance(batch)
        self.model.optimizer.learning_rate = self.learning_rate()

    def on_train_batch_end(self, batch, logs=None):
        """Ends the training when its time is over."""
        self._advance(batch + 1)
        if self.progress >= 1.0:
            self.model.stop_training = True

    def _advance(self, batch):
        elapsed = (time.monotonic() - self.begin) / self.seconds
        # On its own, so that a run within its limit continues as if never stopped.
        self.time_share = agreed(self.first_time_share + (1 - self.first_time_share) * elapsed)
        by_steps = (self.first_step + batch) / self.config.total_steps
        self.progress = min(1.0, max(self.progress, self.time_share, by_steps))

    def learning_rate(self):
        """The rate at the present share: linear warm-up, then a half cosine down to zero."""
        config = self.config
        if self.progress < config.warmup_share:
            # Never zero, or the first step would be lost.
            return self.highest * max(self.progress / config.warmup_share, 0.01)
        if config.schedule == "constant":
            return self.highest
        share = (self.progress - config.warmup_share) / (1 - config.warmup_share)
        return self.highest * (1 + math.cos(math.pi * share)) / 2

    def seconds_used(self):
        """Of the whole command and those that it continues."""
        return self.seconds_before + time.monotonic() - self.begin

    def seconds_left(self):
        """Estimate from the share done since the beginning."""
        elapsed = time.monotonic() - self.begin
        done = self.progress - self.first_progress
        return elapsed * (1 - self.progress) / done if done > 0 else math.inf


class Epochs(keras.callbacks.Callback):
    """At the end of each epoch: validation into the logs, before any callback that reads them."""

    def __init__(self, validator, model, encoder):
        super().__init__()
        self.validator, self.encoder = validator, encoder
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
        collapsed = spread < HAIR
        if collapsed and self.collapsed_before:
            what = f"validation pairs are {spread:.1e} apart on average"
            raise TrainingFailed(f"The embeddings have collapsed: {what}")
        self.collapsed_before = collapsed


class Recorder(keras.callbacks.Callback):
    """After each epoch: history and state on disk, a line for the user. Comes last.

    Args:
        run, config: The `RunDirectory` and its `Config`.
        schedule: The `Schedule`, which knows the time.
        stopper: The `EarlyStopping`, whose state is saved and restored with the weights.
        images_per_step: For the images/s shown.
        state: What `RunDirectory.load_state` gave, or None.
        asked_to_end: What `interrupts` gives.
    """

    def __init__(self, run, config, schedule, stopper, images_per_step, state, asked_to_end):
        super().__init__()
        self.run, self.config, self.schedule, self.stopper = run, config, schedule, stopper
        self.images_per_step, self.asked_to_end = images_per_step, asked_to_end
        self.ready = deque()  # when each batch was, of those not trained on yet
        self.history = state[1]["history"] if state else []
        self.best = (state[0].get("best"), state[1]["stopper"]) if state else None
        self.on_train_begin()

    def on_train_begin(self, logs=None):
        """Restores the early stopping, which forgets its best when a training begins."""
        if self.best:
            self.stopper.best_weights, values = self.best
            for name, value in values.items():
                setattr(self.stopper, name, value)

    def watched(self, batches):
        """The same batches; what the training waits for them is shown after each epoch."""
        self.ready.clear()
        for batch in batches:
            self.ahead = threading.current_thread() is not threading.main_thread()
            self.ready.append(time.monotonic())
            yield batch

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clock and bar."""
        self.begin = self.step_end = time.monotonic()
        self.waited = 0.0
        self.bar = tqdm(total=self.config.steps_per_epoch, leave=False, disable=None, unit="step")

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar; ends cleanly when asked to."""
        self.steps = batch + 1
        latest, ready = self.ready[-1], self.ready.popleft()
        # TensorFlow makes batches while it trains; elsewhere the training waits for any of them.
        self.waited += max(0.0, (ready if self.ahead else latest) - self.step_end)
        shown = f"loss {logs['loss']:.4f}, {clock(self.schedule.seconds_left())} left"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        self.step_end = time.monotonic()
        if agreed(bool(self.asked_to_end)):  # all hosts end at the same step
            self.bar.close()
            raise Interrupted

    def on_epoch_end(self, epoch, logs=None):
        """Writes history and state, then prints the epoch's line."""
        self.bar.close()
        seconds = time.monotonic() - self.begin
        numbers = {name: round(float(value), 6) for name, value in logs.items()}
        rate = self.steps * self.images_per_step / seconds
        extra = {"learning_rate": self.schedule.learning_rate(), "seconds": round(seconds, 2)}
        self.history.append({"epoch": epoch + 1, **numbers, **extra})
        self.run.write_history(self.history)
        self._save_state(epoch)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        waited = self.waited / (self.step_end - self.begin)
        print(
            f"epoch {epoch + 1}/{self.config.epochs}  {shown}  {rate:,.0f} images/s  "
            f"{waited:.1%} waiting for data  {clock(self.schedule.seconds_left())} left",
            flush=True,
        )

    def _save_state(self, epoch):
        stopper = {name: getattr(self.stopper, name) for name in STOPPER}
        stopper = {k: v if v is None else np.asarray(v).item() for k, v in stopper.items()}
        self.best = self.stopper.best_weights, stopper
        self.run.save_state(
            {
                "model": [np.array(v) for v in self.model.variables],
                "optimizer": [np.array(v) for v in self.model.optimizer.variables],
                "best": self.stopper.best_weights or [],
            },
            {
                "epoch": epoch + 1,
                "done": bool(self.model.stop_training) or epoch + 1 >= self.config.epochs,
                "time_share": self.schedule.time_share,
                "seconds_used": self.schedule.seconds_used(),
                "history": self.history,
                "stopper": stopper,
            },
        )


def clock(seconds):
    """Minutes and seconds, as 3:07."""
    if not math.isfinite(seconds):
        return "?:??"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def balanced_accuracy(same, distances, threshold):
    """Share of pairs on the right side of a distance, genuine and impostor weighing the same."""
    accepted = distances < threshold
    return float((accepted[same].mean() + 1 - accepted[~same].mean()) / 2)
