"""What the benchmarks share: work in processes of its own, medians with ranges, tables, JSON.

PyTorch, JAX and pytorch-metric-learning may live in another Python, as two frameworks in one fight
for the cores: BENCHMARK_PYTHON=/path/to/its/python. Without them their rows are left out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
OTHER_PYTHON = os.environ.get("BENCHMARK_PYTHON", sys.executable)
sys.path[:0] = [str(PROJECT)]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def options(doc, data=False, **defaults):
    """The command line: `--name value` for each default, `--data` where images are needed."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout)
    if data:
        folder = {"type": lambda path: Path(path).resolve(), "help": "PlantVillage's folder"}
        parser.add_argument("--data", required=True, **folder)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def work(do):
    """In a worker: does the job that `ask` sent, answers, and ends the process."""
    try:
        answer = do(json.load(sys.stdin))
    except ImportError as error:
        sys.exit(f"{error}. Install it, or set BENCHMARK_PYTHON to a Python that has it.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("\n" + json.dumps({"megabytes": peak, **answer}))
    sys.exit()


def ask(script, job, backend="tensorflow", cores=None):
    """Has another process do a job, so that no contender sees what another one left behind.

    Args:
        script: Of this folder; started with `--worker`, it calls `work`.
        job: What it gets, as JSON.
        backend: Of Keras; "torch" and "jax" run in the other Python.
        cores: It may run on; all by default.

    Returns:
        Its answer, a dict, or None after saying why there is none.
    """
    python = sys.executable if backend == "tensorflow" else OTHER_PYTHON
    process = subprocess.run(
        [python, str(HERE / script), "--worker"], input=json.dumps(job), text=True,
        capture_output=True, env={**os.environ, "KERAS_BACKEND": backend},
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )  # fmt: skip
    if process.returncode:
        reason = (process.stderr.strip() or "killed").splitlines()[-1]
        print(f"{script} {job.get('name', '')}: left out. {reason}", flush=True)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def in_turn(contenders, repeats, measure):
    """Measures contenders one after the other, again and again.

    Args:
        contenders: Their names.
        repeats: How often each.
        measure: Function of a name and the number of the round; None leaves it out from then on.

    Returns:
        Name -> list of answers, of those that gave any.
    """
    answers, out = {name: [] for name in contenders}, set()
    for number in range(repeats):
        for name in contenders:
            answer = None if name in out else measure(name, number)
            (out.add(name) if answer is None else answers[name].append(answer))
    return {name: found for name, found in answers.items() if found}


def save_weights(path):
    """Writes EfficientNet-Lite0's weights, batch norm folded in, for peers in PyTorch."""
    from networks.pretrained import fold_batch_norm, read_weights

    weights = fold_batch_norm(read_weights())
    arrays = {f"{name} {i}": weights[name][i] for name in weights for i in (0, 1)}
    np.savez(path, **arrays)


def score(embeddings, labels, trials=1000):
    """How well embeddings tell classes apart by their Euclidean distance.

    Args:
        embeddings: Of test images, (images, d), any length.
        labels: Their classes, (images,).
        trials: With one reference of each class and one query.

    Returns:
        `(AUC of pairs, N-way one-shot accuracy, N)`, N being all classes; the same pairs and trials
        whatever the embeddings.
    """
    from sklearn.metrics import roc_auc_score

    from evaluation import few_shot, verification

    rng = np.random.default_rng(0)
    left, right, same = verification.draw_verification_pairs(labels, rng)
    distances = verification.pair_distances(embeddings, left, right)
    auc = float(roc_auc_score(same, -distances))
    drawn = few_shot.draw_trials(labels, len(np.unique(labels)), 1, trials, rng)
    distances = few_shot.trial_distances(embeddings, drawn)
    return auc, few_shot.few_shot_accuracy(distances, drawn.answers), distances.shape[1]


def middle(values, digits=0, unit=""):
    """Median and range, as `12 [11, 14]`."""
    middle, low, high = (f(values) for f in (statistics.median, min, max))
    return f"{middle:,.{digits}f}{unit} [{low:,.{digits}f}, {high:,.{digits}f}]"


def table(head, rows):
    """Prints a table in Markdown."""
    print("", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def save(name, **result):
    """Writes what was measured beside the scripts, with the machine and how busy it was."""
    from run_directory import environment

    facts = {"environment": environment(), "load": os.getloadavg()[0]}
    (HERE / f"{name}.json").write_text(json.dumps({**facts, **result}, indent=1) + "\n")
