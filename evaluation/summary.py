"""Metrics -> words: tables for terminal and page, what they mean, the model card. No pictures."""

import dataclasses
import os
from pathlib import Path

BASELINES = "raw pixels", "centred, blurred", "background"
FEW_CLASSES = 10  # below, other classes may well give other numbers

SCORES = {  # key in metrics.json -> title and format
    "auc": ("ROC AUC", ".4f"),
    "equal_error_rate": ("equal error rate", ".1%"),
    "accuracy": ("accuracy at the threshold", ".1%"),
    "precision": ("precision there", ".1%"),
    "recall": ("recall there", ".1%"),
    "true_accept_at_1_percent": ("true accepts at 1% false accepts", ".1%"),
    "true_accept_at_0.1_percent": ("true accepts at 0.1% false accepts", ".1%"),
    "brier": ("Brier score of the probability", ".4f"),
    "recall_at_1": ("retrieval, recall at 1", ".1%"),
    "mean_average_precision": ("retrieval, mean average precision", ".4f"),
}


def sets_of(metrics):
    """The scored sets: "known", "unseen" or both -> their scores."""
    return {name: metrics[name] for name in ("known", "unseen") if name in metrics}


def score_table(metrics):
    """Rows of text, the head first: a score with its 95% interval, a column a set."""
    sets = sets_of(metrics)
    rows = [["", *(f"{name} classes" for name in sets)]]
    rows.append(["images, classes", *(f"{s['images']:,}, {s['classes']}" for s in sets.values())])
    for key, (title, form) in SCORES.items():
        cells = []
        for scores in sets.values():
            ends = scores["intervals"].get(key)
            cells.append(f"{(scores | scores['retrieval'])[key]:{form}}" + interval(ends, form))
        rows.append([title, *cells])
    return rows


def few_shot_table(metrics):
    """Rows of text, the head first: the accuracy of model and baselines, a line an N-way K-shot."""
    lines = [(name, row) for name, scores in sets_of(metrics).items() for row in scores["few_shot"]]
    names = dict.fromkeys(key for _, row in lines for key in row if isinstance(row[key], dict))
    rows = [["N-way K-shot", *names]]
    for name, row in lines:
        cells = [f"{row[key]['accuracy']:.1%}" if key in row else "" for key in names]
        cells[0] += interval(row["model"]["interval"], ".1%")
        rows.append([f"{name}, {row['ways']}-way {row['shots']}-shot {row['classes']}", *cells])
    return rows if lines else []


def interval(ends, form):
    """ " [low, high]", or nothing."""
    return " [" + ", ".join(f"{end:{form}}" for end in ends) + "]" if ends else ""


def score_lines(metrics):
    """The scores as lines for a terminal."""
    lines = []
    for rows in filter(None, (score_table(metrics), few_shot_table(metrics))):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = (zip(row, widths, strict=True) for row in rows)
        lines += ["", *("  ".join(c.ljust(w) for c, w in line).rstrip() for line in cells)]
    return lines + ["", *(f"WARNING: {each}" for each in warnings(metrics))]


def warnings(metrics):
    """All sentences of warning, the set's name before each."""
    sets = sets_of(metrics).items()
    return [f"{name.capitalize()} classes: {each}" for name, s in sets for each in s["warnings"]]


def sentences(metrics):
    """Three sentences for who never trained a network, each with the words it answers."""
    sets = sets_of(metrics)
    name, scores = list(sets.items())[-1]  # unseen classes, where there are any
    whose = {"known": "it trained on", "unseen": "it never saw"}[name]
    can = (
        f"Of pairs of images from {scores['classes']} classes {whose}, it calls "
        f"{scores['accuracy']:.0%} rightly same or different (ROC AUC {scores['auc']:.3f})."
    )
    if row := next((row for row in scores["few_shot"] if row["shots"] == 1), None):
        can = can[:-1] + (
            f"; shown one image each of {row['ways']}, it names the right one in "
            f"{row['model']['accuracy']:.0%} (chance {1 / row['ways']:.0%})."
        )
    low, high = scores["intervals"]["auc"]
    sure = (
        f"On other such classes the ROC AUC lies between {low:.3f} and {high:.3f} with 95% "
        f"confidence, judged by {scores['images']:,} images."
    )
    if scores["classes"] < FEW_CLASSES:
        sure = sure[:-1] + f"; {scores['classes']} classes are few, so others may differ more."
    strict = scores["true_accept_at_1_percent"]
    limits = ["images of another kind or taken in another way"]
    if "unseen" not in sets:
        limits.append("classes it did not train on, which were not measured")
    elif scores["auc"] < 0.75:
        limits.append("classes it did not train on, where it is little better than chance")
    limits.append(
        "decisions that nobody checks: where 1% of impostors may pass, it misses "
        f"{1 - strict:.0%} of the genuine pairs"
    )
    return {"Tells apart": can, "How sure": sure, "Not for": "; ".join(limits).capitalize() + "."}


def leakage(metrics):
    """`(found, sentences)`: whether the numbers owe something to what they should not."""
    found = warnings(metrics)
    said = found or ["No sign of leakage: no image it is scored on, nor a copy, was trained on."]
    for name, scores in sets_of(metrics).items():
        for row in scores["few_shot"][:1]:
            best = max(BASELINES, key=lambda key: row[key]["accuracy"])
            said.append(
                f"{name.capitalize()} classes, {row['ways']}-way one-shot: the network "
                f"{row['model']['accuracy']:.1%}, the best baseline ({best}) "
                f"{row[best]['accuracy']:.1%}."
            )
    return bool(found), said + [metrics["pretrained"]] * bool(metrics["pretrained"])


def model_card(run, metrics):
    """Title -> rows of text about a `RunDirectory`, without a path of the machine.

    Mitchell et al., "Model cards for model reporting", 2019.
    """
    config, splits, threshold = run.config, *map(run.read_json, ("splits.json", "threshold.json"))
    started, rows = run.read_json("environment.json"), run.read_history()
    seconds = sum(float(row["seconds"]) for row in rows)
    kept = {name: len(splits[name]) for name in ("train", "val", "test_known", "test_unseen")}
    settings = dataclasses.asdict(config).items()
    return {
        "Use": list(sentences(metrics).items()),
        "Leakage": [("", sentence) for sentence in leakage(metrics)[1]],
        "Model": [
            ("encoder", f"{config.encoder}, {config.embedding_dim} numbers an image"),
            ("weights", metrics["pretrained"] or "trained from nothing"),
            ("images", "{} x {} pixels, {} channels".format(*config.image_shape)),
            ("distance", config.distance),
            ("threshold", f"{threshold['threshold']:.4f}, {threshold['chosen_for']}"),
        ],
        "Data": [
            ("source", _without_path(splits["source"])),
            ("classes trained on", len(splits["known_classes"])),
            ("classes kept out", len(splits["unseen_classes"])),
            *((f"images, {name.replace('_', ' ')}", f"{count:,}") for name, count in kept.items()),
        ],
        "Training": [
            ("loss", f"{config.loss_name}, sampling {config.sampling}"),
            ("epochs, minutes", f"{len(rows)}, {seconds / 60:.1f}"),
            ("started", started["time"]),
            ("command", " ".join(map(_without_path, started["command"]))),
        ],
        "Scores": score_table(metrics),
        "Versions": [
            *{"python": started["python"], **started["versions"]}.items(),
            *((key, started[key]) for key in ("backend", "machine", "commit")),
        ],
        "Settings": [(name, _without_path(value)) for name, value in settings],
    }


def _without_path(value):
    """A value as text; of a path its end."""
    return Path(value).name if isinstance(value, str) and os.sep in value else str(value)


def markdown(title, card):
    """A `model_card` as Markdown."""
    lines = [f"# {title}"]
    for heading, rows in card.items():
        lines += ["", f"## {heading}", "", "| " * len(rows[0]) + "|", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
