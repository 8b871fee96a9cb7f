"""Thresholds against several references, as tables by their number and the false-accept rate: for
"none of these", and for one enrolled class. No Keras. Arguments: `verification`."""

import numpy as np

from evaluation.thresholds import equal_error_rate

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # target false-accept rates
NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # of references
RULES = {  # a score (n,) from distances to the references, (n, k), and among these, (k, k)
    "nearest": lambda distances, among: distances.min(axis=1),
    "mean": lambda distances, among: distances.mean(axis=1),
    # The energy distance (Szekely & Rizzo 2013), halved: who writes loosely may be further away.
    "energy": lambda distances, among: distances.mean(axis=1) - among.mean() / 2,
}
IMPOSTORS = {"random": "images of other classes", "skilled": "forgeries"}
NO_DISTANCE = 1e-9  # whose logarithm can be taken
DRAWS = 5  # of the references of a class, for a table


def unknown_thresholds(impostors):
    """The table for "none of these", from distances of each validation image to other classes'.

    `impostors` is a list of arrays, or of one of all impostor pairs where classes are not known.
    With n references of other classes drawn, one is nearer than t with probability 1 - (1 - p)^n,
    where p is the share of them that are: averaged over the images, the false-accept rate at t.
    """
    cuts = np.unique(np.quantile(np.concatenate(impostors), np.geomspace(1e-6, 1, 600)))
    nearer = np.array([np.searchsorted(np.sort(row), cuts) / len(row) for row in impostors])
    most = np.median([len(row) for row in impostors])
    numbers = [number for number in NUMBERS if number <= max(1, most)]
    # Rates (cuts,) rise with the cuts.
    accepted = [np.mean(1 - (1 - nearer) ** number, axis=0) for number in numbers]
    return _table(numbers, [np.interp(RATES, rates, cuts) for rates in accepted])


def _table(numbers, thresholds):
    """What `unknown_threshold` reads, as JSON can hold it: thresholds by number and rate."""
    thresholds = [row.tolist() for row in thresholds]
    return {"references": numbers, "false_accept_rates": [*RATES], "thresholds": thresholds}


def unknown_threshold(table, num_references, false_accept_rate=0.01):
    """The threshold of a table for any number of references, of all classes together, and any rate.

    `threshold.json` keeps the table of `unknown_thresholds` as `unknown`, that of
    `reference_thresholds` as `enrolled`.
    """
    rates = np.log(table["false_accept_rates"])
    row = [np.interp(np.log(false_accept_rate), rates, cuts) for cuts in table["thresholds"]]
    numbers, place = np.log(table["references"]), np.log(num_references)
    if place <= numbers[-1] or len(row) < 2:
        return float(np.interp(place, numbers, row))
    # Beyond what validation could show: near points are as many as a power of the distance.
    last, before = np.log(np.maximum(row, NO_DISTANCE))[[-1, -2]]
    slope = (last - before) / (numbers[-1] - numbers[-2])
    return float(np.exp(last + slope * (place - numbers[-1])))


def reference_thresholds(distances, labels, forged, rng):
    """The best of `RULES` for enrolled classes and its table, from validation images.

    A false accept is a forgery where there are any, else an image of another class. The best rule
    has the lowest equal error rate with the most references there can be. `distances`, `labels`
    and `forged` are as in `reference_distances`.

    Returns:
        The table, with `rule`, `impostors` in words, `measured` (equal error rates of all rules
        with most references) and `equal_error_rates` by number; None where no class has two images.
    """
    counts = np.bincount(labels[~forged])
    numbers = [n for n in NUMBERS if np.sum(counts > n) >= max(1, np.sum(counts > 1) / 2)]
    if not numbers or np.sum(counts > 0) < 2:
        return None
    scores = [reference_distances(distances, labels, forged, n, rng, DRAWS) for n in numbers]
    measured = {rule: equal_errors(by_kind) for rule, by_kind in scores[-1].items()}
    kind = "skilled" if "skilled" in measured["nearest"] else "random"
    rule = min(RULES, key=lambda rule: measured[rule][kind])
    best = [by_rule[rule] for by_rule in scores]
    return {
        "rule": rule,
        "impostors": IMPOSTORS[kind],
        "measured": measured,
        "equal_error_rates": [equal_errors(by_kind)[kind] for by_kind in best],
        **_table(numbers, [np.quantile(by_kind[kind], RATES) for by_kind in best]),
    }


def enrolled_threshold(table, count, false_accept_rate=None):
    """`(threshold, false-accept rate)` of `reference_thresholds` for `count` references.

    None stands for the equal error rate.
    """
    if false_accept_rate is None:
        numbers = np.log(table["references"])
        false_accept_rate = float(np.interp(np.log(count), numbers, table["equal_error_rates"]))
    false_accept_rate = max(false_accept_rate, RATES[0])
    return unknown_threshold(table, count, false_accept_rate), false_accept_rate


def reference_distances(distances, labels, forged, count, rng, draws=1):
    """Scores every image against `count` references of each class that has more images.

    `distances` are of all images to each other, `(n, n)`, `forged` says which are forgeries,
    `(n,)`; of each class genuine images are drawn as references `draws` times.

    Returns:
        Dict: rule -> kind -> array of distances. Kinds are "genuine" (of the class), "random" (of
        another one) and "skilled" (forgeries of the class).
    """
    kinds = "genuine", *IMPOSTORS
    found = {rule: {kind: [np.empty(0)] for kind in kinds} for rule in RULES}
    for label in np.repeat(np.unique(labels), draws):
        own = rng.permutation(np.flatnonzero((labels == label) & ~forged))
        chosen, rest = own[:count], own[count:]
        if len(rest):
            random = np.flatnonzero((labels != label) & ~forged)
            skilled = np.flatnonzero((labels == label) & forged)
            among = distances[np.ix_(chosen, chosen)]
            for kind, rows in zip(kinds, (rest, random, skilled), strict=True):
                to_chosen = distances[np.ix_(rows, chosen)]
                for rule, score in RULES.items():
                    found[rule][kind].append(score(to_chosen, among))
    return {
        rule: {kind: np.concatenate(scores) for kind, scores in by_kind.items()}
        for rule, by_kind in found.items()
    }


def equal_errors(scores):
    """Equal error rate of each kind of impostor, from one rule's scores; without those missing."""
    found, genuine = {}, scores["genuine"]
    for kind in IMPOSTORS:
        if len(genuine) and len(scores[kind]):
            same = np.arange(len(genuine) + len(scores[kind])) < len(genuine)
            found[kind] = equal_error_rate(same, np.concatenate([genuine, scores[kind]]))[0]
    return found
