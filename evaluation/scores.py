"""All scores of one set of held-out images: verification, N-way K-shot, retrieval, baselines."""

import dataclasses
import itertools

import numpy as np

from evaluation import baselines, few_shot, thresholds, verification
from pipeline.class_batches import training_labels

CURVE_WAYS = 20  # N of the accuracy-against-N figure goes from 2 to this
SEEDS = {"pairs": 0, "trials": 1, "bootstrap": 2}


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


def score_set(held, decision, options):
    """All scores of one set, a dict for `metrics.json`; `decision` is the run's threshold.json."""
    threshold, pairs = decision["threshold"], (held.same, held.distances)
    probabilities = thresholds.probability(held.distances, decision["calibration"])
    rng = np.random.default_rng([options.seed, SEEDS["bootstrap"]])
    classes = held.labels[held.left], held.labels[held.right]
    names = np.array(held.dataset.index.class_names)[held.labels]
    pixels = held.dataset.pixels[held.rows]
    methods = baselines.methods(held.embeddings, pixels, held.distance)
    table = few_shot_table(held, methods, options)
    genuine = ~held.forged
    kinds = held.kinds_of_pairs()
    return {
        "images": len(held.rows),
        "classes": len(np.unique(held.labels)),
        **verification.verification_scores(*pairs, threshold, probabilities),
        "intervals": verification.bootstrap_intervals(*pairs, *classes, threshold, rng),
        **{
            kind: impostor_scores(held, kinds[kind])
            for kind in ("skilled", "random")
            if kind in kinds
        },
        "few_shot": table,
        "curve": n_way_curve(held, methods, options),
        "retrieval": few_shot.retrieval_scores(
            held.embeddings[genuine], names[genuine], held.distance
        ),
        "warnings": background_warnings(table),
    }


def impostor_scores(held, impostors):
    """ROC AUC and equal error rate of the genuine pairs against some impostors."""
    pairs = held.same | impostors
    curve = verification.operating_points(held.same[pairs], held.distances[pairs])[:2]
    scores = verification.curve_scores(*curve)
    return {name: scores[name] for name in ("auc", "equal_error_rate")}


def few_shot_table(held, methods, options):
    """N-way K-shot accuracy of all `methods`, of `baselines.methods`, in the same trials.

    Returns a list of dicts: `ways`, `shots`, `trials`, `classes` ("across" or "within" families),
    and each name's `few_shot.few_shot_scores`.
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
                distances = method(trials)
                row[name] = few_shot.few_shot_scores(distances, trials.answers)
            table[place, number, shots] = row | {"random": {"accuracy": 1 / number}}
    return list(table.values())


def n_way_curve(held, methods, options):
    """One-shot accuracy against N = 2..20, for the model and raw pixels.

    All N come from the same trials: the right class and the first N - 1 others. Returns a dict of
    lists, `ways` and each name's `few_shot.few_shot_scores`; None if no trial can be drawn.
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
