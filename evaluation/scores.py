"""All scores of one set of held-out images: verification, N-way K-shot, retrieval, baselines."""

import dataclasses
import itertools

import numpy as np

from evaluation import (
    baselines,
    few_shot,
    intervals,
    references,
    shortcuts,
    thresholds,
    verification,
)
from pipeline.class_batches import training_labels

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
REFERENCES, MOST_REFERRED = (1, 5, 10), 1500  # enrolled; images that they are measured on
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2, "references": 3}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked of few-shot trials.

    Raises:
        ValueError: If a number is too small.
    """

    ways: tuple = (5, 20)  # N classes
    shots: tuple = (1, 5)  # K references of each
    trials: int = 1000
    seed: int = 0  # of pairs, trials and bootstrap

    def __post_init__(self):
        given = {"ways": self.ways, "shots": self.shots, "trials": [self.trials]}
        for (name, numbers), least in zip(given.items(), (2, 1, 1), strict=True):
            if not numbers or min(numbers) < least:
                raise ValueError(f"{name} must be {least} or more. Received: {[*numbers]}.")


def score_set(held, decision, options, ink=False):
    """All scores of one set, a dict for `metrics.json`.

    `decision` is the run's threshold.json, `ink` whether its images are ink alone. Where classes
    are not known, as in lists of pairs, there are scores of pairs alone.
    """
    index, kinds = held.dataset.index, held.kinds_of_pairs()
    probabilities = thresholds.probability(held.distances, decision["calibration"])
    pairs = held.same, held.distances, decision["threshold"]
    found = {"images": len(held.rows), "classes": len(np.unique(held.labels))}
    found |= verification.verification_scores(*pairs, probabilities)
    units, rng = units_of(held), np.random.default_rng([options.seed, SEEDS["bootstrap"]])
    of_pairs = *pairs[:2], held.left, held.right, decision["threshold"]
    found["intervals"] = intervals.verification_intervals(found, *of_pairs, units, rng)
    found |= {k: impostor_scores(held, kinds[k]) for k in ("skilled", "random") if k in kinds}
    found |= fold_scores(held)
    found |= {"few_shot": [], "curve": None, "retrieval": None, "references": []}
    if index.classes_known:
        names, genuine = np.array(index.class_names)[held.labels], ~held.forged
        pixels = held.dataset.pixels[held.rows]
        methods = baselines.methods(held.embeddings, pixels, held.distance)
        found["few_shot"] = few_shot_table(held, methods, options)
        found["curve"] = n_way_curve(held, methods, options)
        of_genuine = held.embeddings[genuine], names[genuine], held.distance
        found["retrieval"] = few_shot.retrieval_scores(*of_genuine)
        found["references"] = reference_scores(held, options)
    found["baselines"] = shortcuts.shortcut_scores(held, ink)
    found["warnings"] = background_warnings(found["few_shot"]) + shortcuts.shortcut_warnings(found)
    return found


def units_of(held):
    """What an interval draws anew, see `intervals.Units`."""
    families = held.dataset.index.families[held.rows]
    return intervals.Units.of(held.labels, families, held.name == "known")


def fold_scores(held):
    """Mean accuracy over the folds of a list, each at the threshold best on the others (LFW)."""
    folds = held.pair_folds
    if folds is None or len(np.unique(folds)) < 2:
        return {}
    accuracies = []
    for fold in np.unique(folds):
        others, inside = folds != fold, folds == fold
        cut = thresholds.best_threshold(held.same[others], held.distances[others])[1]
        accuracies.append(np.mean((held.distances[inside] < cut) == held.same[inside]))
    error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    return {"folds": {"folds": len(accuracies), "accuracy": float(np.mean(accuracies)),
                      "standard_error": float(error)}}  # fmt: skip


def reference_scores(held, options):
    """Equal error rates against K references of a class: dicts of `references`, `rule`, kinds."""
    rng = np.random.default_rng([options.seed, SEEDS["references"]])
    order = np.argsort(rng.permutation(held.labels.max() + 1)[held.labels], kind="stable")
    most = MOST_REFERRED if held.distance is None else intervals.MOST_LEARNED
    some = np.sort(order[:most])  # whole classes, but for the last
    labels, forged = held.labels[some], held.forged[some]
    embeddings = held.embeddings[some]
    distances = verification.all_distances(embeddings, embeddings, held.distance)
    rows = []
    for count in REFERENCES:
        scores = references.reference_distances(distances, labels, forged, count, rng)
        for rule, of in scores.items():
            if len(of["genuine"]) and (count > 1 or rule == "nearest"):  # of one they are the same
                errors = references.equal_errors(of)
                rows.append({"references": count, "rule": rule} | errors)
    return rows


def impostor_scores(held, impostors):
    """ROC AUC and equal error rate of the genuine pairs against some impostors."""
    pairs = held.same | impostors
    curve = verification.operating_points(held.same[pairs], held.distances[pairs])[:2]
    scores = verification.curve_scores(*curve)
    return {name: scores[name] for name in ("auc", "equal_error_rate")}


def few_shot_table(held, methods, options):
    """N-way K-shot accuracy of all `methods`, of `baselines.methods`, in the same trials.

    Returns a list of dicts: `ways`, `shots`, `trials`, `classes` ("across" or "within" families),
    and each name's `accuracy`, the model's with its `interval`.
    """
    families = held.dataset.index.families[held.rows]
    labels = training_labels(held.dataset.index)[held.rows]  # a forgery is of no class
    places = {"across": None} | ({"within": families} if len(np.unique(families)) > 1 else {})
    table = {}
    for place, ways, shots in itertools.product(places, options.ways, options.shots):
        what = f"{held.name} classes, {shots}-shot {place} families"
        rng = np.random.default_rng([options.seed, SEEDS["trials"], ways, shots])
        wanted = ways, shots, options.trials
        try:
            trials = few_shot.draw_trials(labels, *wanted, rng, places[place])
        except ValueError as error:
            if ways == options.ways[0]:  # the others lack the same images
                print(f"{what}: {error}")
            continue
        number = trials.references.shape[1]
        if number < ways:
            print(f"{what}: {number}-way, not {ways}-way: no more classes have enough images.")
        if (place, number, shots) not in table:
            row = {"classes": place, "ways": number, "shots": shots, "trials": options.trials}
            for name, method in methods.items():
                accuracy = few_shot.few_shot_accuracy(method(trials), trials.answers)
                row[name] = {"accuracy": accuracy}
            given = {number: row["model"]["accuracy"]}, shots, held.embeddings, labels
            at = {"families": places[place], "distance": held.distance}
            found = intervals.few_shot_intervals(*given, units_of(held), rng, options.trials, **at)
            row["model"]["interval"] = found[number]
            table[place, number, shots] = row | {"random": {"accuracy": 1 / number}}
    return list(table.values())


def n_way_curve(held, methods, options):
    """One-shot accuracy against N = 2..20, for the model and raw pixels.

    All N come from the same trials: the right class and the first N - 1 others. Returns a dict of
    lists, `ways` and each name's dicts of `accuracy`, the model's with their `interval`; None if no
    trial can be drawn.
    """
    rng = np.random.default_rng([options.seed, SEEDS["trials"]])
    labels = training_labels(held.dataset.index)[held.rows]
    try:
        trials = few_shot.draw_trials(labels, CURVE_WAYS, 1, options.trials, rng)
    except ValueError:
        return None
    number = trials.references.shape[1]
    # The right class first, then the others in the order drawn.
    order = np.argsort(np.arange(number) != trials.answers[:, None], axis=1, kind="stable")
    first, curve = np.zeros(len(order), int), {"ways": list(range(2, number + 1))}
    for name in ("model", "raw pixels"):
        distances = np.take_along_axis(methods[name](trials), order, axis=1)
        curve[name] = [
            {"accuracy": few_shot.few_shot_accuracy(distances[:, :n], first)} for n in curve["ways"]
        ]
    accuracies = [point["accuracy"] for point in curve["model"]]
    given = dict(zip(curve["ways"], accuracies, strict=True)), 1, held.embeddings, labels
    at = {"distance": held.distance}
    found = intervals.few_shot_intervals(*given, units_of(held), rng, options.trials, **at)
    for point, ends in zip(curve["model"], found.values(), strict=True):
        point["interval"] = ends
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
