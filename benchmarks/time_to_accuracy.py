"""Seconds from image files to AUC 0.95 and 0.99 on new images of known classes, peers and ours.

python benchmarks/time_to_accuracy.py --data PLANTVILLAGE [--seconds 120] [--repeats 3]

Every contender is a process of its own, reads the same training files and is scored on the same
pairs of test files as its training goes on. Importing and scoring are not timed. Peers and ours
take turns. (c) needs PyTorch and pytorch-metric-learning, here or in BENCHMARK_PYTHON.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from sklearn.metrics import roc_auc_score

from configs import Config
from evaluation import verification

GOALS = (0.95, 0.99)
LOOK_EVERY = 10  # steps of ours between two scores
OURS = {  # name -> what differs from the `compact` encoder on classes, from scratch
    "ours": {},
    "ours, images as they are": {  # as (c) takes them
        "rotate": 0.0,
        "zoom": 0.0,
        "shift": 0.0,
        "horizontal_flip": False,
        "brightness": 0.0,
    },
}
PEERS = {  # name -> module in peers/ and its settings
    "(a) as published": ("published", {}),
    "(b) generator": ("generator", {}),
    "(c) PyTorch float32": ("metric_learning", {}),
    "(c) PyTorch bfloat16": ("metric_learning", {"bfloat16": True}),
}


def main():
    """Runs the command line."""
    options = common.options(__doc__, data=True, seconds=120.0, repeats=3)
    with tempfile.TemporaryDirectory() as cache:
        job = {"seconds": options.seconds, **make_job(options.data, cache)}

    def measure(name, number):
        backend = "torch" if "PyTorch" in name else "tensorflow"
        answer = common.ask("time_to_accuracy.py", {**job, "name": name, "seed": number}, backend)
        print(name, answer and row([answer]), flush=True)
        return answer

    found = common.in_turn([*OURS, *PEERS], options.repeats, measure)
    head = ["contender", *(f"s to AUC {goal}" for goal in GOALS), "best AUC", "GB"]
    common.table(head, [[name, *row(answers)] for name, answers in found.items()])
    if "(a) as published" in found:
        goal = statistics.median(best(answer) for answer in found["(a) as published"])
        when = {name: [first(a, goal) for a in answers] for name, answers in found.items()}
        print(f"\nTo the best AUC of (a), {goal:.3f}:")
        for name, seconds in when.items():
            print(f"  {name}: {common.middle(seconds, 1)} s")
    common.save("time_to_accuracy", seconds=options.seconds, found=found)


def make_job(folder, cache):
    """Training files with their labels, test files, and the pairs to score."""
    from prepare_data import load_data

    data = load_data(dataclasses.replace(our_config(folder), cache_dir=cache))
    index, train, test = data.index, data.splits.train, data.splits.test_known
    rng = np.random.default_rng(0)
    left, right, same = verification.draw_verification_pairs(index.labels[test], rng)
    return {
        "folder": str(folder),
        "files": [str(folder / name) for name in index.names[train]],
        "labels": index.labels[train].tolist(),
        "rows": train.tolist(),
        "paths": [str(folder / name) for name in index.names[test]],
        "pairs": [left.tolist(), right.tolist(), same.tolist()],
    }


def our_config(folder, name="ours"):
    """The config of one of `OURS`."""
    return Config(sampling="classes", data_dir=str(folder), **OURS[name])


def contend(job):
    """In a worker: the `curve` of one contender, (seconds, AUC) as its training goes on."""
    watch = Watch(job["paths"], job["pairs"])
    if job["name"] in OURS:
        train_ours(job, watch)
    else:
        from importlib import import_module

        module, settings = PEERS[job["name"]]
        train = import_module(f"peers.{module}").train
        labels = np.array(job["labels"])
        train(job["files"], labels, job["seconds"], watch, job["seed"], **settings)
    return {"curve": watch.curve}


class Watch:
    """Scores a contender while it trains, and takes its own time off the clock.

    Args:
        paths: Test files.
        pairs: `(left, right, same)` among them.
    """

    def __init__(self, paths, pairs):
        self.paths, self.pairs, self.curve, self.own = paths, pairs, [], 0.0

    def __call__(self, seconds, embed):
        begin, (left, right, same) = time.perf_counter(), self.pairs
        distances = verification.pair_distances(np.asarray(embed(self.paths)), left, right)
        self.curve.append((seconds - self.own, float(roc_auc_score(same, -distances))))
        self.own += time.perf_counter() - begin


def train_ours(job, watch):
    """Indexes, decodes and trains as `train.py` does, with a look at every tenth step."""
    import keras

    from networks.embedding import embed
    from pipeline.class_batches import ClassBatches
    from pipeline.image_cache import open_cache
    from pipeline.image_index import read_index
    from training.fit import build_training_model, compile_model

    keras.utils.set_random_seed(job["seed"])
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as cold:
        folder = Path(job["folder"])
        config = our_config(folder, job["name"])
        config = dataclasses.replace(config, cache_dir=cold, seed=job["seed"])
        index = read_index(folder)
        cache = open_cache(index, config)
        encoder, model = build_training_model(config)
        compile_model(model, config)
        batches = ClassBatches(index, cache.pixels, np.array(job["rows"]), config)
        row_of = {str(folder / name): row for row, name in enumerate(index.names)}

        def look(batch, logs):
            if (batch + 1) % LOOK_EVERY == 0:
                rows = [row_of[path] for path in watch.paths]
                seconds = time.perf_counter() - begin
                watch(seconds, lambda paths: embed(encoder, cache.pixels, rows))
                model.stop_training = seconds > job["seconds"]

        steps = (batches[step] for step in range(10**9))
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
        model.fit(steps, steps_per_epoch=10**9, callbacks=[callback], shuffle=False, verbose=0)


def first(answer, goal):
    """Seconds until an AUC was reached, infinite if never."""
    return next((seconds for seconds, auc in answer["curve"] if auc >= goal), np.inf)


def best(answer):
    """The highest AUC; chance before the first look."""
    return max((auc for _, auc in answer["curve"]), default=0.5)


def row(answers):
    """Median and range of the seconds to each goal and of the best AUC, and the memory."""
    seconds = [[first(answer, goal) for answer in answers] for goal in GOALS]
    cells = ["never" if np.isinf(np.median(s)) else common.middle(s, 1) for s in seconds]
    gigabytes = [answer["megabytes"] / 1024 for answer in answers]
    return [*cells, common.middle([*map(best, answers)], 4), common.middle(gigabytes, 1)]


if __name__ == "__main__":
    common.work(contend) if "--worker" in sys.argv else main()
