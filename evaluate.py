"""Scores a finished run on images it never trained on. The only place that computes a number
to publish.

python evaluate.py RUN                  its own held-out images: known and unseen classes
python evaluate.py RUN --data PATH      another folder, all of whose classes count as unseen
python evaluate.py RUN --lake_runs ZIP  Lake's 20 one-shot runs of Omniglot
"""

import argparse
import dataclasses
import itertools
import re
import sys
import time
from pathlib import Path

import numpy as np

import baselines
import scores
from image_cache import open_cache
from image_index import DataError, read_index
from keras_start import start_keras
from lake_runs import lake_scores
from prepare_data import Dataset
from run_directory import RunDirectory, RunError
from splits import Splits, unusable

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
MOST_HAUSDORFF = 60  # trials: it takes a millisecond a comparison
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2}


@dataclasses.dataclass
class HeldOut:
    """One set of images to score on, never mixed with another.

    Attributes:
        name: "known" or "unseen".
        dataset: The `prepare_data.Dataset` that the rows are of.
        rows: Its images, sorted.
        labels: Their classes.
        embeddings: (images, embedding_dim).
        left: Positions of the left images of verification pairs; `right` likewise.
        same: True for genuine pairs.
        distances: Of the pairs.
    """

    name: str
    dataset: Dataset
    rows: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    distances: np.ndarray

    @property
    def pixels(self):
        """A copy of all images, uint8 array (images, size, size, channels)."""
        return self.dataset.pixels[self.rows]

    def image(self, position):
        """One image, uint8 array (size, size, channels)."""
        return self.dataset.pixels[self.rows[position]]


def evaluate(run, encoder, options, report=print):
    """Scores a run.

    Args:
        run: A finished `RunDirectory`.
        encoder: Its encoder.
        options: What `parse` gives.
        report: Called with each line for the user.

    Returns:
        `(metrics, held_out)`: a dict for `metrics.json`, and the list of `HeldOut` behind it.

    Raises:
        DataError: If there is nothing to score on.
    """
    threshold = run.read_json("threshold.json")
    metrics = {"run": run.path.name, "data": options.data, "seed": options.seed, "sets": {}}
    held_out = []
    for name, dataset, rows in held_out_rows(run, options.data, report):
        try:
            held = _embed_set(name, dataset, rows, encoder, options.seed)
        except ValueError as error:
            report(f"No score on {name} classes. {error}")
            continue
        held_out.append(held)
        metrics["sets"][name] = score_set(held, threshold, options, report)
    if options.lake_runs:
        metrics["lake"] = lake_scores(Path(options.lake_runs), encoder, run.config)
    if not held_out and not options.lake_runs:
        raise DataError("There is nothing to score on. Give a folder of images with --data.")
    return metrics, held_out


def held_out_rows(run, data, report):
    """Yields `(name, dataset, rows)` for each set that can be scored."""
    config = run.config
    if data:
        config = dataclasses.replace(config, data_dir=data)
    index = read_index(config.data_dir)
    cache = open_cache(index, config)
    left_out = unusable(index, cache.digests, cache.unreadable)
    usable = np.setdiff1d(np.arange(len(index)), list(left_out))
    nothing = usable[:0]
    if data:
        splits = Splits(nothing, nothing, nothing, usable, left_out, [])
        yield "unseen", Dataset(index, cache, splits), usable
        return
    saved, row_of = (
        run.read_json("splits.json"),
        {name: row for row, name in enumerate(index.names)},
    )
    for name in ("known", "unseen"):
        names = saved[f"test_{name}"]
        rows = np.array(sorted(row_of[n] for n in names if n in row_of), dtype=int)
        if len(rows) < len(names):
            report(f"{len(names) - len(rows)} test images of {name} classes are gone.")
        if len(rows):
            splits = Splits(nothing, nothing, nothing, rows, left_out, [])
            yield name, Dataset(index, cache, splits), rows
        else:
            report(f"The run kept no test images of {name} classes.")


def _embed_set(name, dataset, rows, encoder, seed):
    """Embeds a set, each image once, and draws its verification pairs."""
    from siamese_network_funcs import embed

    labels = dataset.index.labels[rows]
    rng = np.random.default_rng([seed, SEEDS["pairs"]])
    pairs = dataset.given_pairs(rows) or scores.draw_verification_pairs(labels, rng)
    embeddings = embed(encoder, dataset.pixels, rows)
    distances = scores.pair_distances(embeddings, *pairs[:2])
    return HeldOut(name, dataset, rows, labels, embeddings, *pairs, distances)


def score_set(held, threshold, options, report=print):
    """All scores of one set.

    Args:
        held: A `HeldOut`.
        threshold: The run's `threshold.json`.
        options: What `parse` gives.
        report: Called with each line for the user.

    Returns:
        Dict for `metrics.json`.
    """
    index = held.dataset.index
    verification = scores.verification_scores(
        held.same, held.distances, threshold["threshold"], threshold["calibration"]
    )
    verification["intervals"] = scores.bootstrap_intervals(
        held.same,
        held.distances,
        held.labels[held.left],
        held.labels[held.right],
        threshold["threshold"],
        np.random.default_rng([options.seed, SEEDS["bootstrap"]]),
    )
    retrieval = scores.retrieval_scores(held.embeddings, held.labels)
    retrieval["class_recall_at_1"] = {
        index.class_names[label]: share for label, share in retrieval["class_recall_at_1"].items()
    }
    retrieval["most_confused"] = [
        [index.class_names[one], index.class_names[other], times]
        for one, other, times in retrieval["most_confused"]
    ]
    pixels = held.pixels
    features = {
        "model": held.embeddings,
        "raw pixels": baselines.raw_pixels(pixels),
        "centred, blurred": baselines.centred_blurred_pixels(pixels),
        "background": baselines.background_pixels(pixels),
    }
    few_shot = few_shot_table(held, features, options, report)
    result = {
        "images": len(held.rows),
        "classes": len(np.unique(held.labels)),
        "verification": verification,
        "few_shot": few_shot,
        "curve": n_way_curve(held, features, options),
        "retrieval": retrieval,
    }
    result["warnings"] = background_warnings(result)
    return result


def few_shot_table(held, features, options, report=print):
    """N-way K-shot accuracy of the model and of every baseline, in the same trials.

    Args:
        held: A `HeldOut`.
        features: Name -> array (images, d); nearest prototype wins.
        options: What `parse` gives: `ways`, `shots`, `trials`, `seed`.
        report: Called with each line for the user.

    Returns:
        List of dicts: `ways`, `shots`, `classes` ("across" or "within" families), and under
        each name `accuracy` and `interval`.
    """
    families = held.dataset.index.families[held.rows]
    places = {"across": None}
    if len(np.unique(families)) > 1:
        places["within"] = families
    table, seen = [], set()
    for place, ways, shots in itertools.product(places, options.ways, options.shots):
        rng = np.random.default_rng([options.seed, SEEDS["trials"], ways, shots])
        try:
            trials = scores.draw_trials(
                held.labels, ways, shots, options.trials, rng, places[place]
            )
        except ValueError as error:
            report(f"{held.name} classes, {shots}-shot {place} families: {error}")
            continue
        number = trials.references.shape[1]
        if number < ways:
            report(f"{held.name} classes, {shots}-shot {place}: {number}-way, not {ways}-way, "
                   "as there are no more classes with enough images.")  # fmt: skip
        if (place, number, shots) in seen:
            continue
        seen.add((place, number, shots))
        row = {"classes": place, "ways": number, "shots": shots, "trials": options.trials}
        for name, values in features.items():
            distances = scores.trial_distances(values, trials)
            row[name] = scores.few_shot_scores(distances, trials.answers)
        if shots == 1 and _is_binary(held):
            row["modified Hausdorff"] = _hausdorff_score(held, trials)
        row["random"] = {"accuracy": 1 / number}
        table.append(row)
    return table


def _is_binary(held):
    kinds = held.dataset.cache.kinds
    return bool(kinds) and all(kind.endswith(" 1") for kind in kinds)


def _hausdorff_score(held, trials):
    """Modified Hausdorff distance on the first trials: it is slow, and no more are needed."""
    first = scores.Trials(*(part[:MOST_HAUSDORFF] for part in trials))
    wanted = np.unique(np.concatenate([first.queries, first.references.ravel()]))
    pixels = held.dataset.pixels[held.rows[wanted]]
    points = dict(zip(wanted.tolist(), baselines.ink_points(pixels), strict=True))
    distances = np.array([
        [baselines.modified_hausdorff(points[query], points[one]) for one in references[:, 0]]
        for query, references in zip(first.queries, first.references, strict=True)
    ])  # fmt: skip
    return scores.few_shot_scores(distances, first.answers)


def n_way_curve(held, features, options):
    """One-shot accuracy against N = 2..20, for the model and raw pixels.

    All N come from the same trials: the right class and the first N - 1 others.

    Args:
        held: A `HeldOut`.
        features: Name -> array (images, d).
        options: What `parse` gives.

    Returns:
        Dict of lists: `ways`, and for each name `accuracy` and `interval`; None if no two
        classes have two images.
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
        distances = scores.trial_distances(features[name], trials)
        distances = np.take_along_axis(distances, order, axis=1)
        first = np.zeros(len(distances), int)
        curve[name] = [scores.few_shot_scores(distances[:, :n], first) for n in curve["ways"]]
    return curve


def background_warnings(result):
    """A sentence for the reader where eight border pixels come near the model's accuracy."""
    for row in result["few_shot"]:
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


# The command line ---------------------------------------------------------------------------------


def table_lines(metrics):
    """The scores as text, for a terminal.

    Args:
        metrics: What `evaluate` gives.

    Returns:
        List of lines.
    """
    lines = []
    for name, result in metrics["sets"].items():
        verification, retrieval = result["verification"], result["retrieval"]
        lines += ["", f"{name} classes: {result['images']} images of {result['classes']} classes"]
        for key in ("auc", "equal_error_rate", "true_accept_at_1_percent", "accuracy"):
            low, high = verification["intervals"][key]
            title = key.replace("_", " ")
            lines.append(f"  {title:<28}{verification[key]:.4f}  [{low:.4f}, {high:.4f}]")
        recalls = "  ".join(f"{k}: {retrieval[f'recall_at_{k}']:.4f}" for k in (1, 5, 10))
        lines.append(f"  {'retrieval, recall at':<28}{recalls}")
        lines.append(f"  {'mean average precision':<28}{retrieval['mean_average_precision']:.4f}")
        for row in result["few_shot"]:
            title = f"{row['ways']}-way {row['shots']}-shot {row['classes']}"
            cells = [f"{k} {v['accuracy']:.1%}" for k, v in row.items() if isinstance(v, dict)]
            lines.append(f"  {title:<28}{', '.join(cells)}")
        lines += [f"  WARNING: {warning}" for warning in result["warnings"]]
    for name, result in metrics.get("lake", {}).items():
        low, high = result["interval"]
        lines.append(
            f"  Lake's runs, {name:<19}{result['error']:.2%} error  [{low:.2%}, {high:.2%}]"
        )
    return lines


def parse(args):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--data", help="score on this folder, .zip or .csv instead")
    parser.add_argument("--ways", type=_at_least(2), nargs="+", default=[5, 20], help="N classes")
    parser.add_argument(
        "--shots", type=_at_least(1), nargs="+", default=[1, 5], help="K references"
    )
    parser.add_argument("--trials", type=_at_least(1), default=1000)
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of pairs and trials")
    parser.add_argument("--lake_runs", help="zip with run01/class_labels.txt and so on")
    parser.add_argument("--out", help="folder for the results; the run's by default")
    return parser.parse_args(args)


def _at_least(low):
    def number(text):
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} up, got {text!r}")
        return int(text)

    return number


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
        metrics, held_out = evaluate(run, run.load_encoder(), options)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return 2
    out = Path(options.out) if options.out else run.path
    out.mkdir(parents=True, exist_ok=True)
    print(*table_lines(metrics), sep="\n")
    from report import write_report

    write_report(out, run, metrics, held_out)
    print(f"\n{out / 'report.html'}, metrics.json and figures; {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
