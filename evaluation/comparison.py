"""Runs side by side: the settings that differ, the scores, and whether a difference is chance."""

import dataclasses

import numpy as np

from evaluation import intervals, verification
from evaluation.report_tables import measured, table

MOST_PAIRS = 5000
PLACES = ("seed", "run_name", "runs_dir", "cache_dir")  # of one config, not settings of it


@dataclasses.dataclass
class ScoredRun:
    """What `evaluate` found of one run."""

    run: object  # a `RunDirectory`
    metrics: dict
    held_out: list  # of `HeldOut`
    encoder: object = None  # the run's


def compare(runs):
    """Rows of text, the head first, of a list of `ScoredRun`; runs that differ in the seed are one.

    A score is that of a run's own held-out images, with its 95% interval; of several seeds the
    mean, with the range. A difference is that of the ROC AUC to the first row, on the images that
    both held out, with a 95% interval by paired bootstrap over classes.
    """
    groups = {}
    for scored in runs:
        settings = dataclasses.asdict(scored.run.config)
        shown = {name: str(value) for name, value in settings.items() if name not in PLACES}
        groups.setdefault(tuple(shown.items()), []).append(scored)
    first, shared = next(iter(groups.values())), set.intersection(*map(set, groups))
    rows = {}
    for settings, group in groups.items():
        cells = {"seeds": str(len(group))}
        cells |= {name: value for name, value in settings if (name, value) not in shared}
        for kind in ("known", "unseen"):
            cells |= _scores(kind, [each.metrics[kind] for each in group if kind in each.metrics])
            cells |= _difference(kind, first, group) if group is not first else {}
        rows[" ".join(str(scored.run.path) for scored in group)] = cells
    return table("runs", rows)


def _scores(kind, found):
    """AUC and one-shot accuracies of the runs of a row."""
    values = {}  # column -> of each run its value, low and high
    for scores in found:
        values.setdefault(f"{kind} AUC", []).append([scores["auc"], *scores["intervals"]["auc"]])
        for row in scores["few_shot"]:
            if row["shots"] == 1 and row["classes"] == "across":
                one_shot = [row["model"]["accuracy"], *row["model"]["interval"]]
                values.setdefault(f"{kind} {row['ways']}-way 1-shot", []).append(one_shot)
    texts = {}
    for column, of_runs in values.items():
        shown = of_runs[0]
        if len(of_runs) > 1:
            seeds = [value for value, *_ in of_runs]
            shown = np.mean(seeds), min(seeds), max(seeds)
        texts[column] = measured(*shown, form=".3f")
    return texts


def _difference(kind, first, group):
    """How much better the AUC of a row is than the first row's: runs of equal seeds are paired."""
    pairs = [(a, b) for a in first for b in group if a.run.config.seed == b.run.config.seed]
    drawn = []
    for pair in pairs or [(first[0], group[0])]:
        both = [held for run in pair for held in run.held_out if held.name == kind]
        if len(both) == 2 and (differences := auc_differences(*both)) is not None:
            drawn.append(differences)
    if not drawn:
        return {}
    middle, *others = np.mean(drawn, axis=0)
    half = 1.96 * np.std(others, ddof=1) / intervals.DAMPING
    low, high = middle - half, middle + half
    verdict = "better" if low > 0 else "worse" if high < 0 else "no more than chance"
    difference = measured(middle, low, high, form="+.3f")
    return {f"{kind} AUC difference": difference, f"{kind} verdict": verdict}


def auc_differences(held, other):
    """ROC AUC of `other` less that of `held`, on the images that both hold out.

    Returns an array: that of the images, then those of bootstrap draws over classes, in each of
    which both see the same; None where they share too few.
    """
    digests = (each.dataset.cache.digests[each.rows] for each in (held, other))
    _, shared, shared_by_other = np.intersect1d(*digests, return_indices=True)
    labels, forged, rng = held.labels[shared], held.forged[shared], np.random.default_rng(0)
    try:
        left, right, same = verification.draw_verification_pairs(labels, rng, MOST_PAIRS, forged)
    except ValueError:  # of two classes or two images of one
        return None
    # Images are not drawn too: classes carry their spread, and intervals would be too wide.
    units = intervals.Units.of(labels, np.zeros(len(labels)), known=False)

    def aucs(embeddings, distance):
        distances = verification.pair_distances(embeddings, left, right, distance)
        of_all = verification.verification_scores(same, distances, 0.0)
        rng = np.random.default_rng(1)  # the same draws for both
        drawn = intervals.resampled_scores(same, distances, left, right, 0.0, units, rng)
        return np.array([scores["auc"] for scores in (of_all, *drawn)])

    of_other = aucs(other.embeddings[shared_by_other], other.distance)
    return of_other - aucs(held.embeddings[shared], held.distance)
