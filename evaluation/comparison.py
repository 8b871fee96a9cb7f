"""Runs side by side: the settings that differ, the scores, and whether a difference is chance."""

import csv
import dataclasses

import numpy as np

from evaluation.verification import draw_verification_pairs, pair_distances

DRAWS, MOST_PAIRS = 400, 5000
PLACES = ("seed", "run_name", "runs_dir", "cache_dir")  # of one config, not settings of it


@dataclasses.dataclass
class ScoredRun:
    """What `evaluate` found of one run."""

    name: str
    config: object  # a `Config`
    metrics: dict
    held_out: list  # of `HeldOut`


def compare(runs):
    """Rows of a table, dicts that a CSV file can hold; runs that differ in the seed are one row.

    A score is that of a run's own held-out images, with its 95% interval; of several seeds it is
    the mean, with the range. A difference is that of the ROC AUC to the first row, on the images
    that both held out, with a 95% interval by paired bootstrap over classes.

    Args:
        runs: List of `ScoredRun`.
    """
    groups = {}
    for run in runs:
        settings = dataclasses.asdict(run.config)
        shown = {name: str(value) for name, value in settings.items() if name not in PLACES}
        groups.setdefault(tuple(shown.items()), []).append(run)
    first = next(iter(groups.values()))
    rows = []
    for settings, group in groups.items():
        row = {"runs": " ".join(run.name for run in group), "seeds": len(group)}
        row |= {name: value for name, value in settings if _differs(groups, name)}
        for kind in ("known", "unseen"):
            row |= _scores(kind, [run.metrics[kind] for run in group if kind in run.metrics])
            row |= _difference(kind, first, group) if group is not first else {}
        rows.append(row)
    return rows


def _differs(groups, name):
    return len({dict(settings)[name] for settings in groups}) > 1


def _scores(kind, found):
    """AUC and one-shot accuracy of the runs of a row: values, and ends of intervals or ranges."""
    columns = {}
    if found:
        aucs = [(scores["auc"], scores["intervals"]["auc"]) for scores in found]
        columns |= _with_ends(f"{kind} AUC", aucs)
    one_shot = [row for scores in found for row in scores["few_shot"] if row["shots"] == 1]
    one_shot = [row for row in one_shot if row["classes"] == "across"]
    for ways in sorted({row["ways"] for row in one_shot}):
        models = [row["model"] for row in one_shot if row["ways"] == ways]
        accuracies = [(model["accuracy"], model["interval"]) for model in models]
        columns |= _with_ends(f"{kind} {ways}-way 1-shot", accuracies)
    return columns


def _with_ends(name, found):
    values, ends = zip(*found, strict=True)
    low, high = ends[0] if len(found) == 1 else (min(values), max(values))
    return {name: float(np.mean(values)), f"{name} low": low, f"{name} high": high}


def _difference(kind, first, group):
    """How much better the AUC of a row is than the first row's: runs of equal seeds are paired."""
    pairs = [(a, b) for a in first for b in group if a.config.seed == b.config.seed]
    drawn = []
    for pair in pairs or [(first[0], group[0])]:
        held = [[held for held in run.held_out if held.name == kind] for run in pair]
        if all(held):
            drawn += [auc_differences(*(each for (each,) in held), np.random.default_rng(0))]
    drawn = [differences for differences in drawn if differences is not None]
    if not drawn:
        return {}
    differences = np.mean(drawn, axis=0)
    low, high = np.nanpercentile(differences[1:], [2.5, 97.5])
    verdict = "better" if low > 0 else "worse" if high < 0 else "no more than chance"
    name = f"{kind} AUC difference"
    ends = {f"{name} low": float(low), f"{name} high": float(high)}
    return {name: float(differences[0]), **ends, f"{kind} verdict": verdict}


def auc_differences(held, other, rng):
    """ROC AUC of `other` less that of `held`, on the images that both hold out.

    Returns:
        Array (1 + DRAWS,): that of the images, then those of bootstrap draws, in each of which both
        see the same classes; None where they share too few.
    """
    digests = (each.dataset.cache.digests[each.rows] for each in (held, other))
    _, *positions = np.intersect1d(*digests, return_indices=True)
    labels, forged = held.labels[positions[0]], held.forged[positions[0]]
    try:
        left, right, same = draw_verification_pairs(labels, rng, MOST_PAIRS, forged)
    except ValueError:  # of two classes or two images of one
        return None
    classes, labels = np.unique(labels, return_inverse=True)
    even = np.full(len(classes), 1 / len(classes))
    of_classes = np.vstack([even * len(classes), rng.multinomial(len(classes), even, DRAWS)])
    # Images are not drawn too: classes carry their spread, and intervals would be too wide.
    one_class = labels[left] == labels[right]
    weights = of_classes[:, labels[left]] * np.where(one_class, 1, of_classes[:, labels[right]])
    found = []
    for each, at in zip((held, other), positions, strict=True):
        distances = pair_distances(each.embeddings[at], left, right, each.distance)
        found.append(_weighted_aucs(same, distances, weights))
    return found[1] - found[0]


def _weighted_aucs(same, distances, weights):
    """ROC AUC for each row of weights (draws, pairs); NaN where a kind of pair weighs nothing."""
    order = np.argsort(distances, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(distances[order])), len(order) - 1)  # ties together
    rates = []
    for kind in (same, ~same):
        sums = np.cumsum(weights[:, order] * kind[order], axis=1)[:, ends]
        rates.append(np.pad(sums, ((0, 0), (1, 0))))
    true, false = rates
    with np.errstate(invalid="ignore"):
        return np.trapezoid(true, false, axis=1) / (true[:, -1] * false[:, -1])


def table(rows):
    """The rows of `compare` as rows of text, the head first, and ends in brackets."""
    names = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in names if not name.endswith((" low", " high"))]
    return [names, *([_cell(row, name) for name in names] for row in rows)]


def _cell(row, name):
    value = row.get(name, "")
    if f"{name} low" not in row:
        return str(value)
    sign = "+" if name.endswith("difference") else ""
    ends = ", ".join(f"{row[f'{name} {end}']:{sign}.3f}" for end in ("low", "high"))
    return f"{value:{sign}.3f} [{ends}]"


def write_csv(rows, path):
    """Writes the rows of `compare` as a table with all columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
