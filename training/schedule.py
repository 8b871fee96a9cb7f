"""The learning rate as a function of the step, and a time limit as a number of steps."""

import math
import time

import keras

UNTIMED, TIMED = 5, 20  # steps at the beginning: those that warm up, those that are timed
RESERVE = 0.1  # share of the time that is left unplanned


class Schedule(keras.callbacks.Callback):
    """Sets the learning rate of each step, and ends the training after the last one.

    With `max_minutes`, some first steps are timed, and what fits becomes the number of steps.

    Args:
        config: A `Config`.
        deadline: `time.monotonic()` at which training must stop; infinite without a limit.
        seconds_per_epoch: What validation and saving take after each epoch.
        total_steps: Decided before, when continuing; else None.

    Attributes:
        total_steps: Of the whole training; None until it is decided.
        cut_at: The step at which the deadline came all the same, or None.
    """

    def __init__(self, config, deadline, seconds_per_epoch, total_steps=None):
        super().__init__()
        self.config, self.deadline = config, deadline
        self.seconds_per_epoch, self.total_steps = seconds_per_epoch, total_steps
        if config.max_minutes is None:
            self.total_steps = config.total_steps
        self.step, self.begin, self.cut_at = 0, None, None

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch's steps start, and how fast pretrained weights move."""
        config = self.config
        self.step = self.first_step = epoch * config.steps_per_epoch
        fine_tuned = 0 < config.frozen_epochs <= epoch
        self.highest = config.learning_rate * (config.fine_tune_rate if fine_tuned else 1.0)

    def on_train_batch_begin(self, batch, logs=None):
        """Sets this step's learning rate."""
        if self.begin is None:
            self.begin, self.begin_step = time.monotonic(), self.step
        self.model.optimizer.learning_rate = self.learning_rate()

    def on_train_batch_end(self, batch, logs=None):
        """Decides on the number of steps; ends the training after the last."""
        self.step = self.first_step + batch + 1
        done = self.step - self.begin_step
        if self.total_steps is None and done == UNTIMED:
            self.timed_from = time.monotonic()
        if self.total_steps is None and done == UNTIMED + TIMED:
            self.total_steps = self._steps_in_time(time.monotonic() - self.timed_from)
        if self.step >= (self.total_steps or self.config.total_steps):
            self.model.stop_training = True
        elif time.monotonic() > self.deadline:
            self.cut_at = self.step
            self.model.stop_training = True

    def _steps_in_time(self, seconds):
        """How many steps of the whole training fit before the deadline; `seconds` for `TIMED`."""
        per_step = seconds / TIMED + self.seconds_per_epoch / self.config.steps_per_epoch
        left = (self.deadline - time.monotonic()) * (1 - RESERVE)
        return min(self.config.total_steps, self.step + max(1, int(left / per_step)))

    def learning_rate(self):
        """Of the present step: linear warm-up, then a half cosine down to zero."""
        config, total = self.config, self.total_steps or self.config.total_steps
        warmup = min(config.warmup_share * config.total_steps, total / 5)
        if self.step < warmup:
            return self.highest * (self.step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return self.highest
        share = (self.step - warmup) / max(total - warmup, 1)
        return self.highest * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def seconds_left(self):
        """Estimate from the steps done since the beginning."""
        total, done = self.total_steps or self.config.total_steps, self.step - self.begin_step
        if not done:
            return math.inf
        return min(
            (time.monotonic() - self.begin) * (total - self.step) / done,
            self.deadline - time.monotonic(),
        )
