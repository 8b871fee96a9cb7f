"""The learning rate as a function of the step, and a time limit as a number of steps."""

import math
import time

import keras

UNTIMED, TIMED = 3, 20  # steps at the beginning: those that warm up, at most those that are timed
ENOUGH = 10.0  # seconds of timed steps
RESERVE = 0.1  # share of the time that is left unplanned
WARMUP = 0.05  # share of the steps in which the learning rate rises; a fifth of a cut training


class Schedule(keras.callbacks.Callback):
    """Sets the learning rate of each step, and ends the training after the last one.

    With `max_minutes`, some first steps are timed, and what fits before the `deadline`, of
    `time.monotonic()`, becomes the number of steps: `total_steps`, which a continued training is
    given. Where the deadline comes before the last step, `cut_at` is the step. `seconds_per_epoch`
    is what validation and saving take.
    """

    def __init__(self, config, deadline, seconds_per_epoch, total_steps=None):
        super().__init__()
        self.config, self.deadline = config, deadline
        self.seconds_per_epoch, self.total_steps = seconds_per_epoch, total_steps
        if config.max_minutes is None:
            self.total_steps = config.total_steps
        self.begin, self.step_seconds, self.cut_at = time.monotonic(), [], None

    @property
    def most_steps(self):
        """The total, or before it is decided what the config allows."""
        return self.total_steps or self.config.total_steps

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch's steps start; what lay between two epochs is not timed."""
        self.step = self.first_step = epoch * self.config.steps_per_epoch
        self.step_end = time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        """Sets this step's learning rate."""
        self.model.optimizer.learning_rate = self.learning_rate()

    def on_train_batch_end(self, batch, logs=None):
        """Ends the training after the last step, which the first ones decide on."""
        self.step, now = self.first_step + batch + 1, time.monotonic()
        self.step_seconds.append(now - self.step_end)
        self.step_end = now
        if self.total_steps is None:
            self._decide(now)
        if now > self.deadline and self.step < self.most_steps:
            self.cut_at = self.step
        if self.cut_at or self.step >= self.most_steps:
            self.model.stop_training = True

    def _decide(self, now):
        """Once enough steps are timed, makes as many the total as fit before the deadline."""
        timed = self.step_seconds[UNTIMED:]
        if len(timed) == TIMED or sum(timed) > ENOUGH:
            per_step = sum(timed) / len(timed)
            per_step += self.seconds_per_epoch / self.config.steps_per_epoch
            fitting = max(1, int((self.deadline - now) * (1 - RESERVE) / per_step))
            self.total_steps = min(self.config.total_steps, self.step + fitting)

    def learning_rate(self):
        """Of the present step: linear warm-up, then a half cosine down to zero."""
        highest, total = self.config.learning_rate, self.most_steps
        if self.config.schedule == "constant":
            return highest
        warmup = min(WARMUP * self.config.total_steps, total / 5)
        if self.step < warmup:
            return highest * (self.step + 1) / (warmup + 1)
        share = (self.step - warmup) / max(total - warmup, 1)
        return highest * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def time_left(self):
        """Minutes and seconds, as 3:07, estimated from the steps done since the beginning."""
        now = time.monotonic()
        per_step = (now - self.begin) / len(self.step_seconds)
        seconds = min((self.most_steps - self.step) * per_step, self.deadline - now)
        return "{}:{:02d}".format(*divmod(max(0, int(seconds)), 60))
