"""Seconds from image files to AUC 0.95 and 0.99 on new images of known classes, peers and ours.

python benchmarks/time_to_accuracy.py --data PLANTVILLAGE [--seconds 120] [--repeats 3]

Every contender reads the same training files and is scored on the same pairs of test files, as its
training goes on; scoring is not timed. Importing is not timed either. Peers and ours take turns.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
from peers import generator, metric_learning, published  # noqa: E402

import batches  # noqa: E402
import fit  # noqa: E402
import scores  # noqa: E402
from configs import CONFIGS  # noqa: E402
from image_cache import open_cache  # noqa: E402
from image_index import read_index  # noqa: E402
from prepare_data import load_data  # noqa: E402
from run_directory import environment, write_whole  # noqa: E402

GOALS = (0.95, 0.99)
LOOK_EVERY = 40  # steps of ours between two scores


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
        distances = scores.pair_distances(np.asarray(embed(self.paths)), left, right)
        self.curve.append((seconds - self.own, float(roc_auc_score(same, -distances))))
        self.own += time.perf_counter() - begin


def train_ours(folder, rows, config, seconds, watch):
    """Index, decode and train as `train.py` does, in our own steps so that it can be scored."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as cold:
        index = read_index(folder)
        cache = open_cache(index, dataclasses.replace(config, cache_dir=cold))
        encoder, model = fit.build_training_model(config)
        fit.compile_model(model, encoder, config)
        drawn = batches.ClassBatches(index, cache.pixels, rows, config)
        of = {str(folder / name): row for row, name in enumerate(index.names)}

        def embed(paths):
            return encoder.predict(cache.pixels[[of[path] for path in paths]], verbose=0)

        step = 0
        while time.perf_counter() - begin < seconds:
            last = step + LOOK_EVERY
            steps = (drawn[n] for n in range(step, last))
            model.fit(steps, steps_per_epoch=LOOK_EVERY, shuffle=False, verbose=0)
            step = last
            watch(time.perf_counter() - begin, embed)


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        base = CONFIGS["plantvillage-best"]
        config = dataclasses.replace(
            base, data_dir=str(options.data), cache_dir=cache, recolored=0.0
        )
        data = load_data(config)
        index, splits = data.index, data.splits
    files = [str(options.data / index.names[row]) for row in splits.train]
    labels = index.labels[splits.train]
    paths = [str(options.data / index.names[row]) for row in splits.test_known]
    pairs = scores.draw_verification_pairs(
        index.labels[splits.test_known], np.random.default_rng(0)
    )
    contenders = {
        "ours": lambda w: train_ours(options.data, splits.train, config, options.seconds, w),
        "(a) as published": lambda w: published.train(files, labels, options.seconds, w),
        "(b) generator": lambda w: generator.train(files, labels, options.seconds, w),
        "(c) PyTorch float32": lambda w: metric_learning.train(files, labels, options.seconds, w),
        "(c) PyTorch bfloat16": lambda w: metric_learning.train(
            files, labels, options.seconds, w, bfloat16=True
        ),
    }
    curves = {name: [] for name in contenders}
    for repeat in range(options.repeats):
        for name, contender in contenders.items():
            keras.utils.set_random_seed(repeat)
            watch = Watch(paths, pairs)
            try:
                contender(watch)
            except ImportError as error:
                print(f"{name}: left out, {error}. pip install torch pytorch-metric-learning")
                continue
            curves[name].append(watch.curve)
            print(name, table_row(curves[name]), flush=True)
    print("\n| contender | s to AUC 0.95 | s to 0.99 | best AUC |\n|---|---|---|---|")
    for name, found in curves.items():
        if found:
            print(f"| {name} |{table_row(found)}")
    result = {"environment": environment(), "seconds": options.seconds, "curves": curves}
    path = HERE / "time_to_accuracy.json"
    write_whole(path, lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))


def table_row(found):
    """Median and range of the seconds to each goal, and the median of the best AUC."""
    cells = []
    for goal in GOALS:
        times = [next((s for s, auc in curve if auc >= goal), np.inf) for curve in found]
        middle, low, high = np.median(times), min(times), max(times)
        cells.append(f"{middle:.0f} [{low:.0f}, {high:.0f}]" if np.isfinite(middle) else "never")
    best = np.median([max(auc for _, auc in curve) for curve in found])
    return " " + " | ".join([*cells, f"{best:.4f}"]) + " |"


if __name__ == "__main__":
    main()
