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
        self.begin = self.timed_from = self.cut_at = None

    @property
    def most_steps(self):
        """The total, or before it is decided what the config allows."""
        return self.total_steps or self.config.total_steps

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch's steps start; what lay between two epochs is not timed."""
        self.step = self.first_step = epoch * self.config.steps_per_epoch
        if self.timed_from is not None:
            self.timed_from += time.monotonic() - self.step_end

    def on_train_batch_begin(self, batch, logs=None):
        """Sets this step's learning rate."""
        if self.begin is None:
            self.begin, self.begin_step = time.monotonic(), self.step
        self.model.optimizer.learning_rate = self.learning_rate()

    def on_train_batch_end(self, batch, logs=None):
        """Decides on the number of steps; ends the training after the last."""
        self.step, self.step_end = self.first_step + batch + 1, time.monotonic()
        now = self.step_end
        done = self.step - self.begin_step - UNTIMED
        if self.total_steps is None and done == 0:
            self.timed_from = now
        seconds = now - (self.timed_from or now)
        if self.total_steps is None and done > 0 and (done == TIMED or seconds > ENOUGH):
            per_step = seconds / done
            per_step += self.seconds_per_epoch / self.config.steps_per_epoch
            fitting = max(1, int((self.deadline - now) * (1 - RESERVE) / per_step))
            self.total_steps = min(self.config.total_steps, self.step + fitting)
        late = now > self.deadline and self.step < self.most_steps
        self.cut_at = self.step if late else None
        if late or self.step >= self.most_steps:
            self.model.stop_training = True

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
        per_step = (now - self.begin) / (self.step - self.begin_step)
        seconds = min((self.most_steps - self.step) * per_step, self.deadline - now)
        return "{}:{:02d}".format(*divmod(max(0, int(seconds)), 60))
