"""Scores a finished run on images it never trained on. The only place that computes a number
to publish.

python evaluate.py RUN                  its own held-out images: known and unseen classes
python evaluate.py RUN --data PATH      another folder, all of whose classes count as unseen
python evaluate.py RUN --lake_runs ZIP  Lake's 20 one-shot runs of Omniglot
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation import baselines, few_shot, thresholds, verification
from evaluation.protocols import lake_scores
from evaluation.report import score_lines, write_report
from networks.embedding import start_keras
from pipeline.files import DataError
from pipeline.image_cache import open_cache
from pipeline.image_index import read_index
from pipeline.splits import unusable
from prepare_data import Dataset
from run_directory import RunDirectory, RunError

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2}


@dataclasses.dataclass
class HeldOut:
    """One set of images to score on; images are told by their position in `rows`."""

    name: str  # "known" or "unseen"
    dataset: Dataset
    rows: np.ndarray  # of the dataset, sorted
    labels: np.ndarray  # their classes
    embeddings: np.ndarray  # (images, embedding_dim)
    distance: Callable | None  # of two embeddings, as in `verification`
    left: np.ndarray  # of verification pairs
    right: np.ndarray
    same: np.ndarray  # True for genuine pairs
    distances: np.ndarray  # of the pairs

    def image(self, position):
        """One image, uint8 array (size, size, channels)."""
        return self.dataset.pixels[self.rows[position]]

    def class_name(self, position):
        """The name of an image's class."""
        return self.dataset.index.class_names[self.labels[position]]


def evaluate(run, encoder, options, distance=None):
    """Scores a finished `RunDirectory` with its encoder and, where learned, its distance.

    Takes the options of `parse`. Returns a dict for `metrics.json`, and the list of `HeldOut`
    behind it; raises DataError if there is nothing to score on.
    """
    decision = run.read_json("threshold.json")
    metrics = {"run": run.path.name, "data": options.data, "seed": options.seed, "sets": {}}
    held_out = []
    dataset, sides = held_out_rows(run, options.data)
    for name, rows in sides.items():
        try:
            held = embed_set(name, dataset, rows, encoder, distance, options.seed)
        except ValueError as error:
            print(f"No score on {name} classes. {error}")
            continue
        held_out.append(held)
        metrics["sets"][name] = score_set(held, decision, options)
    if options.lake_runs:
        metrics["lake"] = lake_scores(Path(options.lake_runs), encoder, run.config, distance)
    elif not held_out:
        raise DataError("There is nothing to score on. Give a folder of images with --data.")
    return metrics, held_out


def held_out_rows(run, data, report=print):
    """The images to score on: all of `data`, or else what the run kept for test.

    Returns a `Dataset`, and its rows by name, "known" or "unseen".
    """
    config = dataclasses.replace(run.config, data_dir=data) if data else run.config
    index = read_index(config.data_dir)
    cache = open_cache(index, config, run.ranges if data else None)
    dataset = Dataset(index, cache, splits=None)
    if data:
        left_out = unusable(index, cache.digests, cache.unreadable)
        return dataset, {"unseen": np.setdiff1d(np.arange(len(index)), list(left_out))}
    saved, sides = run.read_json("splits.json"), {}
    for name in ("known", "unseen"):
        rows = np.flatnonzero(np.isin(index.names, saved[f"test_{name}"]))
        if gone := len(saved[f"test_{name}"]) - len(rows):
            report(f"{gone} test images of {name} classes are gone.")
        if len(rows):
            sides[name] = rows
        else:
            report(f"The run kept no test images of {name} classes.")
    return dataset, sides


def embed_set(name, dataset, rows, encoder, distance, seed):
    """Embeds a set, each image once, and draws its verification pairs: a `HeldOut`."""
    from networks.embedding import embed

    labels = dataset.index.labels[rows]
    rng = np.random.default_rng([seed, SEEDS["pairs"]])
    pairs = verification.verification_pairs(dataset, rows, rng)
    embeddings = embed(encoder, dataset.pixels, rows)
    distances = verification.pair_distances(embeddings, *pairs[:2], distance)
    return HeldOut(name, dataset, rows, labels, embeddings, distance, *pairs, distances)


def score_set(held, decision, options):
    """All scores of one set, a dict for `metrics.json`; `decision` is the run's threshold.json."""
    threshold, pairs = decision["threshold"], (held.same, held.distances)
    likely = thresholds.probability(held.distances, decision["calibration"])
    rng = np.random.default_rng([options.seed, SEEDS["bootstrap"]])
    classes = held.labels[held.left], held.labels[held.right]
    names = np.array(held.dataset.index.class_names)[held.labels]
    binary = all(kind.endswith(" 1") for kind in held.dataset.cache.kinds)
    pixels = held.dataset.pixels[held.rows]
    rivals = baselines.rivals(held.embeddings, pixels, held.distance, binary)
    table = few_shot_table(held, rivals, options)
    return {
        "images": len(held.rows),
        "classes": len(np.unique(held.labels)),
        "verification": {
            **verification.verification_scores(*pairs, threshold, likely),
            "intervals": verification.bootstrap_intervals(*pairs, *classes, threshold, rng),
        },
        "few_shot": table,
        "curve": n_way_curve(held, rivals, options),
        "retrieval": few_shot.retrieval_scores(held.embeddings, names, held.distance),
        "warnings": background_warnings(table),
    }


def few_shot_table(held, rivals, options):
    """N-way K-shot accuracy of all `rivals`, of `baselines.rivals`, in the same trials.

    Returns a list of dicts: `ways`, `shots`, `trials`, `classes` ("across" or "within" families),
    and each name's `few_shot.few_shot_scores`.
    """
    families = held.dataset.index.families[held.rows]
    places = {"across": None} | ({"within": families} if len(np.unique(families)) > 1 else {})
    table = {}
    for place, ways, shots in itertools.product(places, options.ways, options.shots):
        what = f"{held.name} classes, {shots}-shot {place} families"
        rng = np.random.default_rng([options.seed, SEEDS["trials"], ways, shots])
        wanted = ways, shots, options.trials
        try:
            trials = few_shot.draw_trials(held.labels, *wanted, rng, places[place])
        except ValueError as error:
            if ways == options.ways[0]:  # the others lack the same images
                print(f"{what}: {error}")
            continue
        number = trials.references.shape[1]
        if number < ways:
            print(f"{what}: {number}-way, not {ways}-way: no more classes have enough images.")
        if (place, number, shots) not in table:
            row = {"classes": place, "ways": number, "shots": shots, "trials": options.trials}
            for name, rival in rivals.items():
                distances = rival(trials)
                row[name] = few_shot.few_shot_scores(distances, trials.answers[: len(distances)])
            table[place, number, shots] = row | {"random": {"accuracy": 1 / number}}
    return list(table.values())


def n_way_curve(held, rivals, options):
    """One-shot accuracy against N = 2..20, for the model and raw pixels.

    All N come from the same trials: the right class and the first N - 1 others. Returns a dict of
    lists, `ways` and each name's `few_shot.few_shot_scores`; None if no trial can be drawn.
    """
    rng = np.random.default_rng([options.seed, SEEDS["trials"]])
    try:
        trials = few_shot.draw_trials(held.labels, CURVE_WAYS, 1, options.trials, rng)
    except ValueError:
        return None
    number = trials.references.shape[1]
    # The right class first, then the others in the order drawn.
    order = np.argsort(np.arange(number) != trials.answers[:, None], axis=1, kind="stable")
    first, curve = np.zeros(len(order), int), {"ways": list(range(2, number + 1))}
    for name in ("model", "raw pixels"):
        distances = np.take_along_axis(rivals[name](trials), order, axis=1)
        curve[name] = [few_shot.few_shot_scores(distances[:, :n], first) for n in curve["ways"]]
    return curve


def background_warnings(few_shot):
    """A sentence for the reader where eight border pixels come near the model's accuracy."""
    for row in few_shot:
        model, background = row["model"]["accuracy"], row["background"]["accuracy"]
        if row["shots"] == 1 and 2 * background > model + 1 / row["ways"]:
            return [
                f"Eight border pixels reach {background:.1%} at {row['ways']}-way one-shot "
                f"({row['classes']} families), the model {model:.1%}: this data can be solved "
                "without looking at the object."
            ]
    return []


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", help="a finished run directory")
    add("--data", help="score on this folder, .zip or .csv instead")
    add("--ways", type=int, nargs="+", default=[5, 20], help="N classes")
    add("--shots", type=int, nargs="+", default=[1, 5], help="K references")
    add("--trials", type=int, default=1000)
    add("--seed", type=int, default=0, help="of pairs and trials")
    add("--lake_runs", help="zip with run01/class_labels.txt and so on")
    add("--out", help="folder for the results; the run's by default")
    return parser.parse_args(args)


def main(args=None):
    """Runs the command line; returns the exit status."""
    options, begin = parse(args), time.monotonic()
    try:
        run = RunDirectory(options.run)
        if not run.is_finished:
            raise RunError(f"'{run.path}' is not finished. Run: python train.py {run.path}")
        if options.data:
            read_index(options.data)  # a wrong path is told before Keras is imported
        start_keras()
        encoder = run.load_encoder()
        metrics, held_out = evaluate(run, encoder, options, run.load_distance())
        print(*score_lines(metrics), sep="\n")
        out = Path(options.out or run.path)
        write_report(out, run, metrics, held_out, encoder)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    print(f"\n{out / 'report.html'}, metrics.json and figures; {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
