"""Seconds from image files to a network that tells new images apart, peers and ours.

python benchmarks/time_to_accuracy.py --data PLANTVILLAGE [--seconds 120] [--repeats 3]
python benchmarks/time_to_accuracy.py --data PLANTVILLAGE --weights imagenet --seconds 240

The first starts from nothing, and tells when AUC 0.95 and 0.99 on new images of known classes are
reached; importing and scoring are not timed. The second starts from the same ImageNet weights in
ours and in PyTorch, at most `--seconds` from the command, importing included, and tells what comes
out on new images of known classes and on unseen ones; each repeat keeps out other classes.

Every contender is a process of its own, has the same training files and is scored on the same test
files. They take turns. PyTorch's need pytorch-metric-learning, here or in BENCHMARK_PYTHON.
"""

import dataclasses
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import common
import numpy as np

from configs import CONFIGS, Config
from evaluation.held_out import held_out_rows
from networks.embedding import embed
from prepare_data import load_data
from run_directory import RunDirectory

GOALS = (0.95, 0.99)
LOOK_EVERY = 10  # steps of ours between two scores
UNSEEN_SHARE = 0.33  # of the classes, from ImageNet weights
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
PRETRAINED = {  # name -> what `train.py photographs` is told, or a function of the peer
    "ours, frozen": ["--epochs", "0"],
    "PyTorch, frozen": "frozen",
    "ours, fine-tuned": [],
    "PyTorch, fine-tuned": "fine_tuned",
}


def main():
    """Runs the command line."""
    options = common.options(__doc__, data=True, seconds=120.0, repeats=3, weights="none")
    compare = from_imagenet if options.weights == "imagenet" else from_nothing
    with tempfile.TemporaryDirectory() as place:
        found = compare(options, place)
    common.save(f"time_to_accuracy_{options.weights}", seconds=options.seconds, found=found)


def ask(name, job):
    """A contender's answer to a job."""
    backend = "torch" if "PyTorch" in name else "tensorflow"
    job = {**job, "name": name, "begin": time.time()}
    return common.ask("time_to_accuracy.py", job, backend)


def from_nothing(options, place):
    """Has all learn for as long, prints when they reached the goals, and returns the answers."""
    data = load_data(dataclasses.replace(our_config(options.data), cache_dir=place))
    job = {"seconds": options.seconds, **make_job(options.data, data)}

    def measure(name, number):
        answer = ask(name, {**job, "seed": number})
        print(name, answer and row([answer]), flush=True)
        return answer

    found = common.in_turn([*OURS, *PEERS], options.repeats, measure)
    head = ["contender", *(f"s to AUC {goal}" for goal in GOALS), "best AUC", "GB"]
    common.table(head, [[name, *row(answers)] for name, answers in found.items()])
    if "(a) as published" in found:
        goal = statistics.median(best(answer) for answer in found["(a) as published"])
        when = {name: [first(a, goal) for a in answers] for name, answers in found.items()}
        print(f"\nTo the best AUC of (a), {goal:.3f}:\n")
        for name, seconds in when.items():
            print(f"- {name}: {common.middle(seconds, 1)} s")
    return found


def from_imagenet(options, place):
    """The same from ImageNet weights, scored at the end and on unseen classes too."""
    weights, jobs = f"{place}/weights.npz", {}
    common.save_weights(weights)
    here = {"data_dir": str(options.data), "cache_dir": place, "unseen_share": UNSEEN_SHARE}
    config = dataclasses.replace(CONFIGS["photographs"], **here)

    def measure(name, number):
        seed = number + 1
        if seed not in jobs:
            data = load_data(dataclasses.replace(config, seed=seed))
            jobs[seed] = make_job(options.data, data)
        job = {"seconds": options.seconds, "weights": weights, "seed": seed, **jobs[seed]}
        answer = ask(name, job)
        print(name, answer, flush=True)
        return answer

    found, rows = common.in_turn(PRETRAINED, options.repeats, measure), []
    for name, answers in found.items():
        cells = [name, common.middle([answer["seconds"] for answer in answers])]
        for side in ("known", "unseen"):
            aucs, accuracies, ways = zip(*(answer[side] for answer in answers), strict=True)
            cells += [common.middle(aucs, 3), common.middle([100 * a for a in accuracies], 1, "%")]
            cells[-1] += f" ({ways[0]}-way)"
        rows.append([*cells, common.middle([a["megabytes"] / 1024 for a in answers], 1)])
    head = ["contender", "s from the command", "known AUC", "one-shot", "unseen AUC", "one-shot"]
    common.table([*head, "GB"], rows)
    return found


def make_job(folder, data):
    """Training files with their labels, and test files of known and unseen classes with theirs."""
    index, splits = data.index, data.splits

    def some(rows):
        return [str(folder / name) for name in index.names[rows]], index.labels[rows].tolist()

    (files, labels), rows = some(splits.train), splits.train.tolist()
    job = {"folder": str(folder), "files": files, "labels": labels, "rows": rows}
    return job | {"known": some(splits.test_known), "unseen": some(splits.test_unseen)}


def our_config(folder, name="ours"):
    """The config of one of `OURS`."""
    return Config(sampling="classes", data_dir=str(folder), **OURS[name])


def contend(job):
    """In a worker: the `curve` of one contender, (seconds, AUC) as its training goes on.

    From ImageNet weights: `seconds` from the command, `common.score` of known and unseen classes.
    """
    if "weights" in job:
        ours = job["name"].startswith("ours")
        return train_photographs(job) if ours else train_peer(job)
    watch = Watch(*job["known"])
    if job["name"] in OURS:
        train_ours(job, watch)
    else:
        module, settings = PEERS[job["name"]]
        train = import_module(f"peers.{module}").train
        labels = np.array(job["labels"])
        train(job["files"], labels, job["seconds"], watch, job["seed"], **settings)
    return {"curve": watch.curve}


def train_photographs(job):
    """Runs `train.py photographs` on an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        words = ["--data_dir", job["folder"], "--unseen_share", str(UNSEEN_SHARE)]
        words += ["--cache_dir", f"{place}/cache", "--runs_dir", place, "--run_name", "run"]
        words += ["--seed", str(job["seed"]), "--max_minutes", str(job["seconds"] / 60)]
        words += PRETRAINED[job["name"]]
        command, begin = [sys.executable, "train.py", "photographs", *words], time.time()
        subprocess.run(command, cwd=common.PROJECT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.time() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        run = RunDirectory(f"{place}/run")
        dataset, sides, _ = held_out_rows(run)
        encoder = run.load_encoder()
        scores = {
            side: common.score(embed(encoder, dataset.pixels, rows), dataset.index.labels[rows])
            for side, rows in sides.items()
        }
    return {"seconds": seconds, "megabytes": peak, **scores}


def train_peer(job):
    """Has a function of `peers.efficientnet_lite0` learn."""
    from peers import efficientnet_lite0

    learn = getattr(efficientnet_lite0, PRETRAINED[job["name"]])
    end = job["begin"] + job["seconds"]
    learned = learn(job["files"], job["labels"], end, job["weights"], job["seed"])
    answer = {"seconds": time.time() - job["begin"]}
    for side, embed_paths in zip(("known", "unseen"), learned, strict=True):
        paths, labels = job[side]
        answer[side] = common.score(embed_paths(paths), np.array(labels))
    return answer


class Watch:
    """Scores a contender while it trains, and takes its own time off the clock.

    Args:
        paths: Test files.
        labels: Their classes.
    """

    def __init__(self, paths, labels):
        self.paths, self.labels, self.curve, self.own = paths, np.array(labels), [], 0.0

    def __call__(self, seconds, embed):
        begin = time.perf_counter()
        auc, *_ = common.score(np.asarray(embed(self.paths)), self.labels)
        self.curve.append((seconds - self.own, auc))
        self.own += time.perf_counter() - begin


def train_ours(job, watch):
    """Indexes, decodes and trains as `train.py` does, with a look at every tenth step."""
    import keras

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
