"""Trains and scores every config, and prints a table of them. Restartable.

python benchmarks/recipes.py --data ROOT                     all configs, three seeds each
python benchmarks/recipes.py --data ROOT koch faces --minutes 5
python benchmarks/recipes.py --data ROOT --ablation          recipe 1 turned into ours, a step a row

ROOT holds plantvillage/, omniglot/images_background.zip, att_faces/ and dogs/. A third of the
classes (of the alphabets) is kept unseen. Finished runs are not trained again.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
sys.path.insert(0, str(PROJECT))

from run_directory import RunDirectory, environment, write_atomically  # noqa: E402

RUNS = HERE / "runs"
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
OTHERS = ["--unit_length", "True", "--optimizer", "adamw", "--learning_rate", "2e-3"]
ABLATION = {  # each row adds to those above it
    "leak-free": ["plantvillage-recipe"],
    "colour": ["--channels", "3"],
    "all pairs of the batch": ["--sampling", "classes", "--loss", "supervised_contrastive"],
    "compact encoder": ["--encoder", "compact", "--embedding_dim", "128", *OTHERS],
    "augmentation": "--rotate 180 --zoom 0.15 --shift 0.05 --horizontal_flip True".split(),
    "annealing, whitened features": "--schedule cosine".split(),
}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[], help="configs; all by default")
    parser.add_argument("--data", required=True, type=Path)
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
        print(line(rows[-1]), flush=True)
    title = "ablation" if options.ablation else "recipes"
    result = {"environment": environment(), "minutes": options.minutes, "rows": rows}
    path = HERE / f"{title}.json"
    write_atomically(path, lambda file: file.write_text(json.dumps(result, indent=2) + "\n"))
    print_table(title, rows)


def measure(name, words, data, seed, minutes):
    """Trains and scores one run, or reads what an earlier call left."""
    path = RUNS / f"{name.replace(' ', '-')}-{minutes:g}m-{seed}"
    if not (path / "cost.json").exists():
        started = (path / "config.json").exists()
        command = [str(path)] if started else [
            *words, "--data_dir", str(data), "--runs_dir", str(RUNS), "--run_name", path.name,
            "--cache_dir", str(HERE / "cache"), "--seed", str(seed),
            "--unseen_share", "0.33", "--test_share", "0.15", "--max_minutes", str(minutes),
        ]  # fmt: skip
        if "omniglot" in str(data) and not started:
            command += ["--hold_out_by", "family"]
        code, megabytes = run("train.py", command)
        if code:
            return None
        write_atomically(path / "cost.json", lambda f: f.write_text(json.dumps({"mb": megabytes})))
    if not (path / "metrics.json").exists():
        ways = ["--ways", "6", "10", "18", "20", "--shots", "1", "5"]
        run("evaluate.py", [str(path), *ways])
    return RunDirectory(path)


def run(script, command):
    """`(exit status, peak megabytes)` of one of the project's commands."""
    process = subprocess.Popen([sys.executable, str(PROJECT / script), *command], cwd=PROJECT)
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024


def summary(runs):
    """Means over the seeds, and their ranges."""
    if not runs:
        return {"seeds": 0}
    cells = {"seeds": len(runs), "minutes": [], "images_per_second": [], "gigabytes": []}
    for run_directory in runs:
        with open(run_directory / "history.csv") as file:
            history = list(csv.DictReader(file))
        seconds = sum(float(row["seconds"]) for row in history)
        cells["minutes"].append(seconds / 60)
        cells["images_per_second"].append(_images(run_directory.config, len(history)) / seconds)
        cells["gigabytes"].append(run_directory.read_json("cost.json")["mb"] / 1024)
        metrics = run_directory.read_json("metrics.json")
        for side in {"known", "unseen"} & metrics.keys():
            result = metrics[side]
            cells.setdefault(f"{side}_auc", []).append(result["auc"])
            for row in result["few_shot"]:
                if row["classes"] == "across" and row["shots"] == 1:
                    key = f"{side}_{row['ways']}_way"
                    cells.setdefault(key, []).append(row["model"]["accuracy"])
    return {
        name: values if name == "seeds" else {"mean": np.mean(values), "range": _range(values)}
        for name, values in cells.items()
    }


def _images(config, epochs):
    pairs = config.sampling == "pairs"
    per_step = 2 * config.pairs_per_batch
    if not pairs:
        per_step = config.classes_per_batch * config.images_per_class
    return epochs * config.steps_per_epoch * per_step


def _range(values):
    return [float(min(values)), float(max(values))]


def line(row):
    """A row of the table, in Markdown."""
    if not row["seeds"]:
        return f"| `{row['config']}` | failed |"
    cells = [f"`{row['config']}`", f"{row['minutes']['mean']:.1f}"]
    cells += [f"{row['gigabytes']['mean']:.1f}", f"{row['images_per_second']['mean']:,.0f}"]
    for side in ("known", "unseen"):
        auc = row.get(f"{side}_auc")
        cells.append(_with_range(auc, ".3f") if auc else "")
        ways = [key for key in row if key.startswith(side) and key.endswith("_way")]
        shown = max(ways, key=lambda key: int(key.split("_")[1]), default=None)
        number = f" ({shown.split('_')[1]}-way)" if shown else ""
        cells.append(_with_range(row[shown], ".1%") + number if shown else "")
    return "| " + " | ".join([*cells, PUBLISHED.get(row["config"], "")]) + " |"


def _with_range(value, form):
    low, high = value["range"]
    return f"{value['mean']:{form}}" + (f" [{low:{form}}, {high:{form}}]" if high > low else "")


def print_table(title, rows):
    """The table in Markdown."""
    head = [
        f"\n{title}\n\n| config | minutes | GB | images/s | known AUC | one-shot | unseen AUC "
        "| one-shot | published |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print(*head, *map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
