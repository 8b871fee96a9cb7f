"""Trains and scores every config, and prints a table of them. Restartable.

python benchmarks/recipes.py --data ROOT                     all configs, three seeds each
python benchmarks/recipes.py --data ROOT koch faces --minutes 5
python benchmarks/recipes.py --data ROOT --ablation          recipe 1 turned into ours, a step a row

ROOT holds plantvillage/, omniglot/images_background.zip, att_faces/ and dogs/. A third of the
classes (of the alphabets) is kept unseen. Finished runs are not trained again.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import common

from run_directory import RunDirectory, write_text

RUNS = common.HERE / "runs"
DATA = {  # config -> what it is run on
    "plantvillage-recipe": "plantvillage",
    "photographs": "plantvillage",
    "triplet": "plantvillage",
    "vgg16": "plantvillage",
    "koch": "omniglot/images_background.zip",
    "characters": "omniglot/images_background.zip",
    "faces": "att_faces",
    "dogs-recipe": "dogs",
}
PUBLISHED = {  # what others report, on other images and splits unless said
    "plantvillage-recipe": "AUC 0.69 on new images, run as published for 90 s",
    "koch": "20-way 82.0 to 86.8%, 44.6 minutes on a GPU",
    "vgg16": "none",
    "dogs-recipe": "training loss about 1",
    "triplet": "none",
}
SCORES = ("AUC", "one-shot", "ways")  # ways: the most that there are trials of
OTHERS = ["--unit_length", "True", "--optimizer", "adamw", "--learning_rate", "2e-3"]
ABLATION = {  # each row adds to those above it
    "leak-free": ["plantvillage-recipe"],
    "colour": ["--channels", "3"],
    "all pairs of the batch": ["--sampling", "classes", "--loss", "supervised_contrastive"],
    "compact encoder": ["--encoder", "compact", "--embedding_dim", "128", *OTHERS],
    "augmentation": "--rotate 180 --zoom 0.15 --shift 0.05 --horizontal_flip True".split(),
    "annealing": "--schedule cosine".split(),
}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[], help="configs; all by default")
    parser.add_argument("--data", required=True, type=lambda path: Path(path).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--ablation", action="store_true")
    options = parser.parse_args()
    if options.ablation:
        jobs, words = {}, []
        for name, more in ABLATION.items():
            words = words + more
            jobs[name] = (list(words), "plantvillage")
    else:
        jobs = {name: ([name], DATA[name]) for name in options.names or DATA}
    rows = []
    for name, (words, data) in jobs.items():
        runs = [
            measure(name, words, options.data / data, seed, options.minutes)
            for seed in options.seeds
        ]
        rows.append({"config": name, **summary([run for run in runs if run])})
        print(*cells(rows[-1]), sep=" | ", flush=True)
    head = ["config", "minutes", "GB", "images/s", "known AUC", "one-shot", "unseen AUC"]
    common.table([*head, "one-shot", "published"], [cells(row) for row in rows])
    title = "ablation" if options.ablation else "recipes"
    common.save(title, minutes=options.minutes, rows=rows)


def measure(name, words, data, seed, minutes):
    """Trains and scores one run, or reads what an earlier call left."""
    path = RUNS / f"{name.replace(' ', '-')}-{minutes:g}m-{seed}"
    if not (path / "cost.json").exists():
        started = (path / "config.json").exists()
        command = [str(path)] if started else [
            *words, "--data_dir", str(data), "--runs_dir", str(RUNS), "--run_name", path.name,
            "--cache_dir", str(common.HERE / "cache"), "--seed", str(seed),
            "--unseen_share", "0.33", "--test_share", "0.15", "--max_minutes", str(minutes),
        ]  # fmt: skip
        if "omniglot" in str(data) and not started:
            command += ["--hold_out_by", "family"]
        code, cost = run("train.py", command)
        if code:
            return None
        write_text(path / "cost.json", json.dumps(cost))
    if not (path / "metrics.json").exists():
        ways = ["--ways", "6", "10", "18", "20", "--shots", "1", "5"]
        run("evaluate.py", [str(path), *ways])
    return RunDirectory(path)


def run(script, command):
    """Exit status of one of the project's commands, and what it cost: minutes and memory."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, script, *command], cwd=common.PROJECT)
    _, status, usage = os.wait4(process.pid, 0)
    cost = {"minutes": (time.monotonic() - begin) / 60, "GB": usage.ru_maxrss / 2**20}
    return os.waitstatus_to_exitcode(status), cost


def summary(runs):
    """Name of a score or cost -> its values, one a seed."""
    found = collections.defaultdict(list)
    for run_directory in runs:
        for name, value in run_directory.read_json("cost.json").items():
            found[name].append(value)
        history = run_directory.read_history()[:-1]  # the time may have cut the last epoch
        if seconds := sum(float(row["seconds"]) for row in history):
            found["images/s"].append(num_images(run_directory.config, len(history)) / seconds)
        metrics = run_directory.read_json("metrics.json")
        for side in {"known", "unseen"} & metrics.keys():
            found[f"{side} AUC"].append(metrics[side]["auc"])
            rows = [row for row in metrics[side]["few_shot"] if row["classes"] == "across"]
            if one_shot := [row for row in rows if row["shots"] == 1]:
                most = max(one_shot, key=lambda row: row["ways"])
                found[f"{side} one-shot"].append(100 * most["model"]["accuracy"])
                found[f"{side} ways"].append(most["ways"])
    return found


def num_images(config, epochs):
    """How many images some epochs train on, each as often as it comes."""
    per_step = 2 * config.pairs_per_batch
    if config.sampling == "classes":
        per_step = config.classes_per_batch * config.images_per_class
    return epochs * config.steps_per_epoch * per_step


def cells(row):
    """A row of the table."""
    if "minutes" not in row:
        return [row["config"], "failed"]
    found = [row["config"], *(common.middle(row[name], 1) for name in ("minutes", "GB"))]
    found.append(common.middle(row["images/s"]) if "images/s" in row else "")
    for side in ("known", "unseen"):
        aucs, accuracies, ways = (row.get(f"{side} {name}") for name in SCORES)
        found.append(common.middle(aucs, 3) if aucs else "")
        found.append(f"{common.middle(accuracies, 1, '%')} ({ways[0]}-way)" if ways else "")
    return [*found, PUBLISHED.get(row["config"], "")]


if __name__ == "__main__":
    main()
