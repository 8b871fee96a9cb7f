"""All scores of one set of held-out images: verification, N-way K-shot, retrieval, baselines."""

import dataclasses
import itertools

import numpy as np
from scipy import stats

from evaluation import baselines, few_shot, intervals, neighbours, references, verification
from evaluation.thresholds import best_threshold

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
REFERENCES, MOST_REFERRED = (1, 5, 10), 1500  # enrolled; images that they are measured on
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2, "references": 3, "episodes": 4}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of an evaluation, on the command line too; a ValueError of small numbers."""

    data: str | None = None  # folder, .zip, .csv or list of pairs; None: what the run kept for test
    pair_label: str | None = None  # what label 1 of a list of pairs means, where no column says it
    protocol: str | None = None  # one of `protocols.PROTOCOLS`; None: verification and few-shot
    strict: bool = False  # whether images trained on are an error; else they are left out
    ways: tuple = (5, 20)  # N classes
    shots: tuple = (1, 5)  # K references of each
    trials: int = 1000
    seed: int = 0  # of pairs, trials and bootstrap

    def __post_init__(self):
        for name, least in (("ways", 2), ("shots", 1), ("trials", 1)):
            numbers = np.atleast_1d(getattr(self, name)).tolist()
            if not numbers or min(numbers) < least:
                raise ValueError(f"{name} must be {least} or more. Received: {numbers}.")
            if name != "trials":
                object.__setattr__(self, name, tuple(numbers))  # one number, or several

    def rng(self, purpose, *others):
        """A NumPy generator for one of `SEEDS`."""
        return np.random.default_rng([self.seed, SEEDS[purpose], *others])


def score_set(held, threshold, options, ink=False):
    """All scores of one set, a dict for `metrics.json`.

    `threshold` is the run's, `ink` whether its images are ink alone. Where classes are not known,
    as in lists of pairs, there are scores of pairs alone.
    """
    found = {"images": len(held.rows), "classes": len(np.unique(held.labels))}
    found |= verification.verification_scores(held.same, held.distances, threshold)
    pairs = held.same, held.distances, held.left, held.right, threshold, held.units
    found["intervals"] = intervals.verification_intervals(found, *pairs, options.rng("bootstrap"))
    found |= impostor_scores(held) | fold_scores(held)
    found |= {"few_shot": [], "curve": [], "references": []}
    if held.dataset.index.classes_known:
        pixels = held.dataset.pixels[held.rows]
        methods = baselines.methods(held.embeddings, pixels, held.distance)
        found["few_shot"] = few_shot_table(held, methods, options)
        found["curve"] = n_way_curve(held, methods, options)
        positions, nearest = held.neighbours
        found |= neighbours.retrieval_scores([*map(held.class_name, positions)], nearest)
        found["references"] = reference_scores(held, options.rng("references"))
    found["baselines"] = baselines.shortcut_scores(held, ink)
    found["warnings"] = baselines.shortcut_warnings(found)
    return found


def impostor_scores(held):
    """ROC AUC and equal error rate against skilled and random impostors, where there are both."""
    found = {}
    for kind, impostors in held.impostors.items():
        if kind != "impostor":
            pairs = held.same | impostors
            curve = verification.operating_points(held.same[pairs], held.distances[pairs])[:2]
            scores = verification.curve_scores(*curve)
            found |= {f"{kind}_{name}": scores[name] for name in ("auc", "equal_error_rate")}
    return found


def fold_scores(held):
    """Mean accuracy over the folds of a list, each at the threshold best on the others (LFW)."""
    index, accuracies = held.dataset.index, []
    if index.pair_folds is None:
        return {}
    folds = index.pair_folds[index.pairs_within(held.rows)]
    if len(np.unique(folds)) < 2:
        return {}
    for fold in np.unique(folds):
        inside = folds == fold
        cut = best_threshold(held.same[~inside], held.distances[~inside])
        accuracies.append(np.mean((held.distances[inside] < cut) == held.same[inside]))
    accuracy, error = float(np.mean(accuracies)), float(stats.sem(accuracies))
    return {"folds": {"folds": len(accuracies), "accuracy": accuracy, "standard_error": error}}


def reference_scores(held, rng):
    """Equal error rates against K references of a class: dicts of `references`, `rule`, kinds."""
    order = np.argsort(rng.permutation(held.labels.max() + 1)[held.labels], kind="stable")
    most = verification.most_compared(MOST_REFERRED, held.distance)
    chosen = np.sort(order[:most])  # whole classes, but for the last
    embeddings, labels, forged = held.embeddings[chosen], held.labels[chosen], held.forged[chosen]
    distances, rows = verification.all_distances(embeddings, embeddings, held.distance), []
    for count in REFERENCES:
        scores = references.reference_distances(distances, labels, forged, count, rng)
        for rule in references.RULES if count > 1 else ["nearest"]:  # of one they are the same
            if errors := references.equal_errors(scores[rule]):
                rows.append({"references": count, "rule": rule} | errors)
    return rows


def few_shot_table(held, methods, options):
    """N-way K-shot accuracy of `baselines.methods`, in the same trials.

    Returns a list of dicts: `ways`, `shots`, `trials`, `classes` ("across" or "within" families),
    and each name's `accuracy`, the model's with its `interval`.
    """
    places = ["across", "within"] if len(np.unique(held.families)) > 1 else ["across"]
    table = {}
    for place, ways, shots in itertools.product(places, options.ways, options.shots):
        what = f"{held.name} classes, {shots}-shot {place} families"
        families = held.families if place == "within" else None
        drawn = ways, shots, options.trials, options.rng("trials", ways, shots), families
        try:
            trials = few_shot.draw_trials(held.trial_labels, *drawn)
        except ValueError as error:
            if ways == options.ways[0]:  # the others lack the same images
                print(f"{what}: {error}")
            continue
        number = trials.references.shape[1]
        if number < ways:
            print(f"{what}: {number}-way, not {ways}-way: no more classes have enough images.")
        if (place, number, shots) not in table:
            (row,) = _accuracies(held, methods, trials, [number], place, options)
            table[place, number, shots] = row
    return list(table.values())


def n_way_curve(held, methods, options):
    """One-shot accuracy for N = 2..20, rows as of `few_shot_table`; none without any trial.

    All N come from the same trials: the right class and the first N - 1 others.
    """
    drawn = CURVE_WAYS, 1, options.trials, options.rng("trials")
    try:
        trials = few_shot.draw_trials(held.trial_labels, *drawn)
    except ValueError:
        return []
    numbers = range(2, trials.references.shape[1] + 1)
    shown = {name: methods[name] for name in ("model", "raw pixels")}
    return _accuracies(held, shown, trials, numbers, "across", options)


def _accuracies(held, methods, trials, numbers, place, options):
    """Rows of `few_shot_table`, one for each number of ways among the first of some trials."""
    num_trials, ways, shots = trials.references.shape
    # The right class first, then the others in the order drawn.
    order = np.argsort(np.arange(ways) != trials.answers[:, None], axis=1, kind="stable")
    first, rows = np.zeros(num_trials, int), []
    distances = {
        name: np.take_along_axis(method(trials), order, axis=1) for name, method in methods.items()
    }
    for number in numbers:
        row = {"classes": place, "ways": number, "shots": shots, "trials": num_trials}
        for name, to_classes in distances.items():
            row[name] = {"accuracy": few_shot.few_shot_accuracy(to_classes[:, :number], first)}
        rows.append(row | {"random": {"accuracy": 1 / number}})
    accuracies = {row["ways"]: row["model"]["accuracy"] for row in rows}
    within, rng = place == "within", options.rng("bootstrap", ways, shots)
    found = intervals.few_shot_intervals(accuracies, shots, held, rng, num_trials, within)
    for row in rows:
        row["model"]["interval"] = found[row["ways"]]
    return rows
