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

import baselines
import scores
from image_cache import open_cache
from image_index import DataError, read_index
from keras_start import start_keras
from lake_runs import lake_scores
from prepare_data import Dataset
from report import score_lines, write_report
from run_directory import RunDirectory, RunError
from splits import unusable

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
MOST_HAUSDORFF = 60  # trials: it takes a millisecond a comparison
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2}


@dataclasses.dataclass
class HeldOut:
    """One set of images to score on, never mixed with another."""

    name: str  # "known" or "unseen"
    dataset: Dataset
    rows: np.ndarray  # of the dataset, sorted
    labels: np.ndarray  # their classes
    embeddings: np.ndarray  # (images, embedding_dim)
    distance: Callable | None  # of two embeddings, as in `scores`
    left: np.ndarray  # of verification pairs: positions in `rows`
    right: np.ndarray
    same: np.ndarray  # True for genuine pairs
    distances: np.ndarray  # of the pairs

    def image(self, position):
        """One image, uint8 array (size, size, channels)."""
        return self.dataset.pixels[self.rows[position]]

    def class_name(self, position):
        """The name of an image's class."""
        return self.dataset.index.class_names[self.labels[position]]


def evaluate(run, encoder, options, distance=None, report=print):
    """Scores a finished `RunDirectory` with its encoder and, where learned, its distance.

    Args:
        options: What `parse` gives.
        report: Called with each line for the user.

    Returns:
        `(metrics, held_out)`: a dict for `metrics.json`, and the list of `HeldOut` behind it.

    Raises:
        DataError: If there is nothing to score on.
    """
    decision = run.read_json("threshold.json")
    metrics = {"run": run.path.name, "data": options.data, "seed": options.seed, "sets": {}}
    held_out = []
    dataset, sides = held_out_rows(run, options.data, report)
    for name, rows in sides.items():
        try:
            held = embed_set(name, dataset, rows, encoder, distance, options.seed)
        except ValueError as error:
            report(f"No score on {name} classes. {error}")
            continue
        held_out.append(held)
        metrics["sets"][name] = score_set(held, decision, options, report)
    if options.lake_runs:
        source = Path(options.lake_runs)
        metrics["lake"] = lake_scores(source, encoder, run.config, distance)
    if not held_out and not options.lake_runs:
        raise DataError("There is nothing to score on. Give a folder of images with --data.")
    return metrics, held_out


def held_out_rows(run, data, report):
    """The images to score on: all of `data`, or else what the run kept for test.

    Returns:
        `(dataset, sides)`: a `Dataset`, and its rows by name, "known" or "unseen".
    """
    config = dataclasses.replace(run.config, data_dir=data) if data else run.config
    index = read_index(config.data_dir)
    cache = open_cache(index, config)
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
    from siamese_network_funcs import embed

    labels = dataset.index.labels[rows]
    rng = np.random.default_rng([seed, SEEDS["pairs"]])
    pairs = dataset.given_pairs(rows) or scores.draw_verification_pairs(labels, rng)
    embeddings = embed(encoder, dataset.pixels, rows)
    distances = scores.pair_distances(embeddings, *pairs[:2], distance)
    return HeldOut(name, dataset, rows, labels, embeddings, distance, *pairs, distances)


def score_set(held, decision, options, report=print):
    """All scores of one set, a dict for `metrics.json`; `decision` is the run's threshold.json."""
    threshold, pairs = decision["threshold"], (held.same, held.distances)
    rng = np.random.default_rng([options.seed, SEEDS["bootstrap"]])
    classes = held.labels[held.left], held.labels[held.right]
    names = np.array(held.dataset.index.class_names)[held.labels]
    pixels = held.dataset.pixels[held.rows]
    features = {
        "model": held.embeddings,
        "raw pixels": baselines.raw_pixels(pixels),
        "centred, blurred": baselines.centred_blurred_pixels(pixels),
        "background": baselines.background_pixels(pixels),
    }
    few_shot = few_shot_table(held, features, options, report)
    return {
        "images": len(held.rows),
        "classes": len(np.unique(held.labels)),
        "verification": {
            **scores.verification_scores(*pairs, threshold, decision["calibration"]),
            "intervals": scores.bootstrap_intervals(*pairs, *classes, threshold, rng),
        },
        "few_shot": few_shot,
        "curve": n_way_curve(held, features, options),
        "retrieval": scores.retrieval_scores(held.embeddings, names, held.distance),
        "warnings": background_warnings(few_shot),
    }


def few_shot_table(held, features, options, report=print):
    """N-way K-shot accuracy of the model and of every baseline, in the same trials.

    Args:
        features: Name -> array (images, d); the nearest prototype wins.

    Returns:
        List of dicts: `ways`, `shots`, `classes` ("across" or "within" families), and under
        each name `accuracy` and `interval`.
    """
    families = held.dataset.index.families[held.rows]
    places = ("across", "within") if len(np.unique(families)) > 1 else ("across",)
    table = {}
    for place, ways, shots in itertools.product(places, options.ways, options.shots):
        rng = np.random.default_rng([options.seed, SEEDS["trials"], ways, shots])
        wanted = held.labels, ways, shots, options.trials, rng
        try:
            trials = scores.draw_trials(*wanted, families if place == "within" else None)
        except ValueError as error:
            if ways == options.ways[0]:  # the others lack the same images
                report(f"{held.name} classes, {shots}-shot {place} families: {error}")
            continue
        number = trials.references.shape[1]
        if number < ways:
            report(f"{held.name} classes, {shots}-shot {place}: {number}-way, not {ways}-way, "
                   "as there are no more classes with enough images.")  # fmt: skip
        if (place, number, shots) in table:
            continue
        row = {"classes": place, "ways": number, "shots": shots, "trials": options.trials}
        for name, values in features.items():
            distances = _trial_distances(held, name, values, trials)
            row[name] = scores.few_shot_scores(distances, trials.answers)
        if shots == 1 and all(kind.endswith(" 1") for kind in held.dataset.cache.kinds):
            row["modified Hausdorff"] = _hausdorff_score(held, trials)
        row["random"] = {"accuracy": 1 / number}
        table[place, number, shots] = row
    return list(table.values())


def _trial_distances(held, name, values, trials):
    return scores.trial_distances(values, trials, held.distance if name == "model" else None)


def _hausdorff_score(held, trials):
    """Of black-and-white images, on the first trials: it is slow, and no more are needed."""
    queries, references, answers = (part[:MOST_HAUSDORFF] for part in trials)
    asked = baselines.ink_points(held.dataset.pixels[held.rows[queries]])
    known = baselines.ink_points(held.dataset.pixels[held.rows[references.ravel()]])
    ways = references.shape[1]
    distances = [
        [baselines.modified_hausdorff(query, one) for one in known[n * ways : (n + 1) * ways]]
        for n, query in enumerate(asked)
    ]
    return scores.few_shot_scores(np.array(distances), answers)


def n_way_curve(held, features, options):
    """One-shot accuracy against N = 2..20, for the model and raw pixels.

    All N come from the same trials: the right class and the first N - 1 others.

    Returns:
        Dict of lists: `ways`, and for each name what `scores.few_shot_scores` gives; None if no
        two classes have two images.
    """
    rng = np.random.default_rng([options.seed, SEEDS["trials"]])
    try:
        trials = scores.draw_trials(held.labels, CURVE_WAYS, 1, options.trials, rng)
    except ValueError:
        return None
    number = trials.references.shape[1]
    # The right class first, then the others in the order drawn.
    order = np.argsort(np.arange(number) != trials.answers[:, None], axis=1, kind="stable")
    curve = {"ways": list(range(2, number + 1))}
    for name in ("model", "raw pixels"):
        distances = _trial_distances(held, name, features[name], trials)
        distances = np.take_along_axis(distances, order, axis=1)
        first = np.zeros(len(distances), int)
        curve[name] = [scores.few_shot_scores(distances[:, :n], first) for n in curve["ways"]]
    return curve


def background_warnings(few_shot):
    """A sentence for the reader where eight border pixels come near the model's accuracy."""
    for row in few_shot:
        model, background, chance = (
            row[name]["accuracy"] for name in ("model", "background", "random")
        )
        if row["shots"] == 1 and background - chance > (model - chance) / 2:
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
    add("--ways", type=_at_least(2), nargs="+", default=[5, 20], help="N classes")
    add("--shots", type=_at_least(1), nargs="+", default=[1, 5], help="K references")
    add("--trials", type=_at_least(1), default=1000)
    add("--seed", type=_at_least(0), default=0, help="of pairs and trials")
    add("--lake_runs", help="zip with run01/class_labels.txt and so on")
    add("--out", help="folder for the results; the run's by default")
    return parser.parse_args(args)


def _at_least(low):
    def whole_number(text):
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} up, got {text!r}")
        return int(text)

    return whole_number


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
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    print(*score_lines(metrics), sep="\n")
    out = Path(options.out or run.path)
    write_report(out, run, metrics, held_out, encoder)
    print(f"\n{out / 'report.html'}, metrics.json and figures; {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
