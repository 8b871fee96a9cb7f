"""Metrics -> words: tables for terminal, page and card, what they mean, what the model is."""

import dataclasses
import re
from collections import defaultdict

from pipeline.splits import SPLITS

FEW_CLASSES, POOR = 10, 0.75  # a number and a ROC AUC below which a sentence warns

SCORES = {  # key in metrics.json -> title and format
    "auc": ("ROC AUC", ".4f"),
    "equal_error_rate": ("equal error rate", ".1%"),
    "skilled_auc": ("ROC AUC, skilled forgeries", ".4f"),
    "skilled_equal_error_rate": ("equal error rate, skilled forgeries", ".1%"),
    "random_auc": ("ROC AUC, random impostors", ".4f"),
    "random_equal_error_rate": ("equal error rate, random impostors", ".1%"),
    "accuracy": ("accuracy at the threshold", ".1%"),
    "precision": ("precision there", ".1%"),
    "recall": ("recall there", ".1%"),
    "best_accuracy": ("best mean of true accepts and true rejects", ".1%"),
    "recall_at_1": ("nearest other image is of the class", ".1%"),
    "smallest_rate": ("smallest false-accept rate measured", ".2%"),
    "true_accept_at_10_percent": ("true accepts at 10% false accepts", ".1%"),
    "true_accept_at_1_percent": ("true accepts at 1% false accepts", ".1%"),
    "true_accept_at_0.1_percent": ("true accepts at 0.1% false accepts", ".1%"),
}


def sets_of(metrics):
    """The scored sets: "known", "unseen" or both -> their scores."""
    return {name: metrics[name] for name in ("known", "unseen") if name in metrics}


def tables(metrics):
    """All tables that there is something for: lists of rows of text, the head first."""
    found = defaultdict(lambda: defaultdict(dict))  # upper left -> row -> column -> text
    for name, scores in sets_of(metrics).items():
        column, rows = f"{name} classes", found[""]
        rows["images, classes"][column] = f"{scores['images']:,}, {scores['classes']}"
        for key, (title, form) in SCORES.items():
            if key in scores:
                ends = scores["intervals"].get(key, ())
                rows[title][column] = measured(scores[key], *ends, form=form)
        if folds := scores.get("folds"):
            text = "{accuracy:.2%} +- {standard_error:.2%} over {folds} folds"
            rows["accuracy by folds"][column] = text.format(**folds)
        for row in scores["few_shot"]:
            line = f"{name}, {row['ways']}-way {row['shots']}-shot {row['classes']}"
            for method, each in _methods(row).items():
                text = measured(each["accuracy"], *each.get("interval", ()), form=".1%")
                found["N-way K-shot"][line][method] = text
        for row in scores["references"]:
            line = f"{name}, K = {row['references']}, {row['rule']} distance"
            cells = {kind: f"{row[kind]:.1%}" for kind in ("random", "skilled") if kind in row}
            found["equal error rate against K references"][line] = cells
        for row in scores["baselines"]:
            cells = found["ROC AUC of pairs by one thing alone"][row["name"]]
            for key, kind in (("auc", ""), ("skilled_auc", ", skilled")):
                if key in row:
                    cells[column + kind] = f"{row[key]:.3f}"
    if protocol := metrics.get("protocol"):
        rows = found[protocol["title"]]
        for row in protocol["rows"]:
            rows[row["name"]]["error"] = measured(row["error"], *row["interval"], form=".2%")
        for name, error in protocol["published"].items():
            rows[name]["error"] = f"{error:.2%}, published"
    return [table(corner, rows) for corner, rows in found.items()]


def table(corner, rows):
    """Rows of text, the head first, from row -> column -> text; `corner` is the upper left."""
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    lines = ([row, *(cells.get(column, "") for column in columns)] for row, cells in rows.items())
    return [[corner, *columns], *lines]


def measured(value, *ends, form):
    """A value as text, followed by " [low, high]" where these are given."""
    return f"{value:{form}}" + (f" [{', '.join(f'{end:{form}}' for end in ends)}]" if ends else "")


def _methods(row):
    return {name: found for name, found in row.items() if isinstance(found, dict)}


def markdown(rows):
    """Rows of text, the head first, as a table for terminal and card."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines])


def report_lines(metrics):
    """The scores as lines for a terminal."""
    lines = [line for rows in tables(metrics) for line in ("", markdown(rows))]
    return lines + ["", *(f"WARNING: {each}" for each in warnings(metrics))]


def warnings(metrics):
    """All sentences of warning, the set's name before each."""
    sets = sets_of(metrics).items()
    return [f"{name.capitalize()} classes: {each}" for name, s in sets for each in s["warnings"]]


def sentences(metrics):
    """Three sentences for a reader who never trained a network: question -> answer."""
    if not (sets := sets_of(metrics)):
        return {}
    name, scores = list(sets.items())[-1]  # unseen classes, where there are any
    can = (
        f"of pairs of images from {scores['classes']} classes "
        f"{'it trained on' if name == 'known' else 'it never saw'}, it calls "
        f"{scores['accuracy']:.0%} rightly same or different (ROC AUC {scores['auc']:.3f})"
    )
    if row := next((row for row in scores["few_shot"] if row["shots"] == 1), None):
        can += (
            f"; shown one image each of {row['ways']}, it names the right one in "
            f"{row['model']['accuracy']:.0%} (chance {1 / row['ways']:.0%})"
        )
    low, high = scores["intervals"]["auc"]
    sure = (
        f"with 95% confidence the ROC AUC lies between {low:.3f} and {high:.3f} on other such "
        f"classes, judged by {scores['images']:,} images"
    )
    if scores["classes"] < FEW_CLASSES:
        sure += f"; {scores['classes']} classes are few, so that others may differ by more"
    limits = "images of another kind, or taken in another way"
    if "unseen" not in sets:
        limits += "; classes it did not train on, which were not measured"
    elif scores["auc"] < POOR:
        limits += "; classes it did not train on, where it is little better than chance"
    limits += "; decisions that nobody checks"
    if "true_accept_at_1_percent" in scores:
        refused = 1 - scores["true_accept_at_1_percent"]
        limits += f": where 1% of impostors may pass, {refused:.0%} of genuine pairs are refused"
    return {"It can tell apart": f"{can}.", "How sure": f"{sure}.", "Not for": f"{limits}."}


def leakage(metrics):
    """`(found, sentences)`: whether the numbers owe something to what they should not."""
    found, said = warnings(metrics), []
    if left_out := metrics.get("left_out"):
        said.append("{images} of {of} images were trained on and left out.".format(**left_out))
    for name, scores in sets_of(metrics).items():
        compared = {}  # what -> scores of the network and of each baseline
        for row in scores["few_shot"][:1]:
            what = f"{row['ways']}-way {row['shots']}-shot accuracy"
            compared[what] = {kind: each["accuracy"] for kind, each in _methods(row).items()}
        if scores["baselines"]:
            aucs = {row["name"]: row["auc"] for row in scores["baselines"]}
            compared["ROC AUC of pairs"] = {"model": scores["auc"]} | aucs
        for what, others in compared.items():
            network = others.pop("model")
            best = max(others, key=others.get)
            sentence = f"{name.capitalize()} classes, {what}: the network {network:.3f}, "
            sentence += f"the best baseline ({best}) {others[best]:.3f}."
            (found if others[best] >= network else said).append(sentence)
    if "left_out" not in metrics:  # as of a protocol that brings its own images
        said.insert(0, "Whether images it is scored on were trained on has not been looked at.")
    elif not found:
        said.insert(0, "No sign of leakage: no image it is scored on, nor a copy, was trained on.")
    if metrics["pretrained"]:
        said.append(metrics["pretrained"])
    return bool(found), found + said


def model_card(run, metrics):
    """Title -> name -> value of what a `RunDirectory` is, without a path of the machine.

    After Mitchell et al., "Model cards for model reporting", 2019.
    """
    files = "splits.json", "threshold.json", "environment.json"
    splits, threshold, started = map(run.read_json, files)
    history = run.read_history()
    cut = measured(threshold["threshold"], *threshold.get("interval", ()), form=".4f")
    card = {
        "Model": {
            "weights": metrics["pretrained"] or "trained from nothing",
            "images": "{} x {} pixels, {} channels".format(*run.config.image_shape),
            "threshold": f"{cut}, {threshold['chosen_for']}",
        },
        "Data": {
            "source": splits["source"],
            "classes": f"{len(splits['known_classes'])}, {len(splits['unseen_classes'])} kept out",
            **{f"images, {side.replace('_', ' ')}": len(splits[side]) for side in SPLITS},
        },
        "Training": {
            "epochs": len(history),
            "minutes": f"{sum(float(row['seconds']) for row in history) / 60:.1f}",
            "started": started["time"],
            "command": " ".join(started["command"]),
        },
        "Versions": {
            "python": started["python"],
            **started["versions"],
            **{name: started[name] for name in ("backend", "machine", "commit")},
        },
        "Settings": dataclasses.asdict(run.config),
    }
    folders = re.compile(r"[^\s=]*[/\\](?=.)")
    return {
        title: {fact: folders.sub("", str(value)) for fact, value in facts.items()}
        for title, facts in card.items()
    }
