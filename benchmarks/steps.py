"""Training steps of one encoder, batch and precision: Keras on three backends, and plain PyTorch.

python benchmarks/steps.py [--seconds 10] [--repeats 5] [--batch 128] [--config triplet]

The share is of the rate that this processor reaches multiplying matrices in that precision,
2,048 x 2,048, in whichever library is fastest; a step counts as three forward passes.
"""

import dataclasses
import math
import statistics
import sys
import time

import common
import numpy as np

from configs import CONFIGS

WARM_UP = 5  # steps, after the one that compiles
MATRIX = 2048
PEERS = {"PyTorch": {"compiled": False}, "PyTorch, compiled": {"compiled": True}}
BACKENDS = ("tensorflow", "jax", "torch")


def main():
    """Runs the command line."""
    options = common.options(__doc__, seconds=10.0, repeats=5, batch=128, config="triplet")
    jobs = {}
    for precision in ("float32", "bfloat16"):
        job = {**vars(options), "precision": precision}
        for backend in BACKENDS:
            name = f"Keras, {backend}, {precision}"
            jobs[name] = {**job, "name": name, "backend": backend}
        for peer, settings in PEERS.items():
            name = f"{peer}, {precision}"
            jobs[name] = {**job, **settings, "name": name, "backend": "torch", "peer": True}

    def measure(name, number):
        answer = common.ask("steps.py", jobs[name], jobs[name]["backend"])
        print(name, answer and f"{answer['rate']:,.0f} images/s", flush=True)
        return answer

    found = common.in_turn(jobs, options.repeats, measure)
    rows, flops = [], next(a[0]["flops"] for a in found.values() if "flops" in a[0])
    fastest = {
        precision: max(
            statistics.median(answer["matmul"] for answer in answers)
            for name, answers in found.items()
            if name.endswith(precision)
        )
        for precision in {jobs[name]["precision"] for name in found}
    }
    for name, answers in found.items():
        rates = [answer["rate"] for answer in answers]
        reached = 3 * flops * statistics.median(rates) / fastest[jobs[name]["precision"]]
        memory = common.middle([answer["megabytes"] / 1024 for answer in answers], 1)
        rows.append([name, common.middle(rates), f"{reached:.0%}", memory])
    print(f"\n{options.config}, batches of {options.batch}: {flops / 1e6:.0f} million operations "
          "an image, forward")  # fmt: skip
    for precision, rate in sorted(fastest.items()):
        print(f"matrices in {precision}: {rate / 1e9:,.0f} billion operations/s")
    common.table(["what", "images/s", "of the matrix rate", "GB"], rows)
    common.save("steps", options=vars(options), flops=flops, matmul=fastest, found=found)


def measure_steps(job):
    """In a worker: `rate` (images/s), `matmul` (operations/s), and of Keras `flops`."""
    base = dataclasses.replace(CONFIGS[job["config"]], precision=job["precision"])
    rng = np.random.default_rng(0)
    shape = (job["batch"], base.image_size, base.image_size, base.channels)
    labels = np.arange(job["batch"], dtype=np.int32) // base.images_per_class
    batches = [(rng.integers(0, 256, shape, np.uint8), labels) for _ in range(4)]
    measure = pytorch_steps if job.get("peer") else keras_steps
    return {**measure(job, base, batches), "matmul": matmul_rate(job["precision"])}


def keras_steps(job, config, batches):
    """The steps that `train.py` makes, in Keras's `fit`."""
    import keras

    from training.fit import build_training_model, compile_model

    encoder, model = build_training_model(config)
    compile_model(model, config)
    clock = Clock(job["seconds"])
    steps = (batches[step % len(batches)] for step in range(10**9))
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", clock(logs["loss"]))
    )
    model.fit(steps, steps_per_epoch=10**9, callbacks=[callback], shuffle=False, verbose=0)
    return {"rate": clock.rate * job["batch"], "flops": forward_flops(encoder)}


def pytorch_steps(job, config, batches):
    """The same in PyTorch, channels last."""
    from peers.metric_learning import build_trainer

    step, _ = build_trainer(job["precision"] == "bfloat16", job["compiled"])
    clock, number = Clock(job["seconds"]), 0
    while not clock(step(*batches[number % len(batches)])):
        number += 1
    return {"rate": clock.rate * job["batch"]}


class Clock:
    """Called after each step with its loss, which waits for the step; true when time is over."""

    def __init__(self, seconds):
        self.seconds, self.times = seconds, []

    def __call__(self, loss):
        if not math.isfinite(float(loss)):
            raise ValueError(f"The loss is {float(loss)}")
        self.times.append(time.perf_counter())
        return len(self.times) > WARM_UP + 1 and self.times[-1] - self.times[WARM_UP] > self.seconds

    @property
    def rate(self):
        """Steps per second after the warm-up."""
        return (len(self.times) - WARM_UP - 1) / (self.times[-1] - self.times[WARM_UP])


def matmul_rate(precision, seconds=2.0):
    """Operations per second of the fastest product of two square matrices, in this backend."""
    import keras

    ones = keras.ops.ones((MATRIX, MATRIX), precision)
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        float(keras.ops.matmul(ones, ones)[-1, -1])
        times.append(time.perf_counter() - before)
    return 2 * MATRIX**3 / min(times)


def forward_flops(encoder):
    """Multiplications and additions that one image costs in convolutions and dense layers."""
    weighted = [layer for layer in encoder._flatten_layers() if hasattr(layer, "kernel")]
    return sum(
        2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in weighted
    )


if __name__ == "__main__":
    common.work(measure_steps) if "--worker" in sys.argv else main()
