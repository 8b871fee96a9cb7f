"""Metrics -> words: tables for terminal and page, what they mean, the model card. No pictures."""

import dataclasses
import itertools
import re

FEW_CLASSES, POOR = 10, 0.75  # a number and a ROC AUC below which a sentence warns

SCORES = {  # key in metrics.json -> title and format
    "auc": ("ROC AUC", ".4f"),
    "equal_error_rate": ("equal error rate", ".1%"),
    "skilled auc": ("ROC AUC, skilled forgeries", ".4f"),
    "skilled equal_error_rate": ("equal error rate, skilled forgeries", ".1%"),
    "random auc": ("ROC AUC, random impostors", ".4f"),
    "random equal_error_rate": ("equal error rate, random impostors", ".1%"),
    "accuracy": ("accuracy at the threshold", ".1%"),
    "precision": ("precision there", ".1%"),
    "recall": ("recall there", ".1%"),
    "true_accept_at_10_percent": ("true accepts at 10% false accepts", ".1%"),
    "true_accept_at_1_percent": ("true accepts at 1% false accepts", ".1%"),
    "true_accept_at_0.1_percent": ("true accepts at 0.1% false accepts", ".1%"),
    "smallest_rate": ("smallest false-accept rate measured", ".2%"),
    "brier": ("Brier score of the probability", ".4f"),
    "recall_at_1": ("retrieval, recall at 1", ".1%"),
    "mean_average_precision": ("retrieval, mean average precision", ".4f"),
}


def sets_of(metrics):
    """The scored sets: "known", "unseen" or both -> their scores."""
    return {name: metrics[name] for name in ("known", "unseen") if name in metrics}


def score_table(metrics):
    """Rows of text, the head first: a score with its 95% interval, a column a set."""
    if not (sets := sets_of(metrics)):
        return []
    rows = [["", *(f"{name} classes" for name in sets)]]
    rows.append(["images, classes", *(f"{s['images']:,}, {s['classes']}" for s in sets.values())])
    flat = [scores | (scores["retrieval"] or {}) for scores in sets.values()]
    for scores in flat:
        for kind in ("skilled", "random"):  # impostors, where there are forgeries
            scores |= {f"{kind} {key}": value for key, value in scores.get(kind, {}).items()}
    for key, (title, form) in SCORES.items():
        if any(key in scores for scores in flat):
            rows.append([title, *(_score(scores, key, form) for scores in flat)])
    if any("folds" in scores for scores in flat):
        text = "{accuracy:.2%} +- {standard_error:.2%} over {folds} folds"
        folds = [scores.get("folds") for scores in flat]
        rows.append(["accuracy by folds", *(f and text.format(**f) or "" for f in folds)])
    return rows


def _score(scores, key, form):
    if key not in scores:
        return ""
    return f"{scores[key]:{form}}{interval(scores['intervals'].get(key), form)}"


def few_shot_table(metrics):
    """Rows of text, the head first: the accuracy of model and baselines, a line an N-way K-shot."""
    lines = [(name, row) for name, scores in sets_of(metrics).items() for row in scores["few_shot"]]
    names = dict.fromkeys(key for _, row in lines for key in row if isinstance(row[key], dict))
    rows = [["N-way K-shot", *names]]
    for name, row in lines:
        cells = [f"{row[key]['accuracy']:.1%}" if key in row else "" for key in names]
        cells[0] += interval(row["model"].get("interval"), ".1%")
        rows.append([f"{name}, {row['ways']}-way {row['shots']}-shot {row['classes']}", *cells])
    return rows if lines else []


def shortcut_table(metrics):
    """Rows of text, the head first: ROC AUC of the pairs by single numbers of their pictures."""
    sets = sets_of(metrics)
    kinds = [("auc", ""), ("skilled_auc", ", skilled")]
    columns, names = {}, {}
    for (name, scores), (key, kind) in itertools.product(sets.items(), kinds):
        found = {row["name"]: f"{row[key]:.3f}" for row in scores["baselines"] if key in row}
        if found:
            columns[f"{name} classes{kind}"] = found
            names |= dict.fromkeys(found)
    rows = [["ROC AUC of pairs by one thing alone", *columns]]
    return rows + [[name, *(found.get(name, "") for found in columns.values())] for name in names]


def reference_table(metrics):
    """Rows of text, the head first: equal error rates against K references of a class."""
    lines = [(name, row) for name, s in sets_of(metrics).items() for row in s["references"]]
    if not lines:
        return []
    kinds = [kind for kind in ("random", "skilled") if any(kind in row for _, row in lines)]
    rows = [["equal error rate against K references", *kinds]]
    for name, row in lines:
        title = f"{name}, K = {row['references']}, {row['rule']} distance"
        rows.append([title, *(f"{row[kind]:.1%}" if kind in row else "" for kind in kinds)])
    return rows


def protocol_table(metrics):
    """Rows of text, the head first: errors by a published protocol, ours and those published."""
    if not (found := metrics.get("protocol")):
        return []
    rows = [[found["title"], "error"]]
    for row in found["rows"]:
        rows.append([row["name"], f"{row['error']:.2%}" + interval(row["interval"], ".2%")])
    return rows + [[name, f"{error:.2%}, published"] for name, error in found["published"].items()]


def tables(metrics):
    """All tables that there is something for."""
    made_by = score_table, few_shot_table, reference_table, shortcut_table, protocol_table
    return [rows for rows in (make(metrics) for make in made_by) if len(rows) > 1]


def interval(ends, form):
    """ " [low, high]", or nothing."""
    return " [" + ", ".join(f"{end:{form}}" for end in ends) + "]" if ends else ""


def score_lines(metrics):
    """The scores as lines for a terminal."""
    lines = [line for rows in tables(metrics) for line in ("", *aligned(rows))]
    return lines + ["", *(f"WARNING: {each}" for each in warnings(metrics))]


def aligned(rows):
    """Rows of text as lines with the columns below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return ["  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines]


def warnings(metrics):
    """All sentences of warning, the set's name before each."""
    sets = sets_of(metrics).items()
    return [f"{name.capitalize()} classes: {each}" for name, s in sets for each in s["warnings"]]


def sentences(metrics):
    """Three sentences for a reader who never trained a network: question -> answer."""
    if not (sets := sets_of(metrics)):
        return {}
    name, scores = list(sets.items())[-1]  # unseen classes, where there are any
    one_shot = next((row for row in scores["few_shot"] if row["shots"] == 1), None)
    can = (
        f"of pairs of images from {scores['classes']} classes it "
        f"{'trained on' if name == 'known' else 'never saw'}, it calls {scores['accuracy']:.0%} "
        f"rightly same or different (ROC AUC {scores['auc']:.3f})"
    )
    if one_shot:
        can += (
            f"; shown one image each of {one_shot['ways']}, it names the right one in "
            f"{one_shot['model']['accuracy']:.0%} (chance {1 / one_shot['ways']:.0%})"
        )
    sure = (
        "with 95% confidence the ROC AUC lies between {:.3f} and {:.3f} on other such classes, "
        "judged by {images:,} images"
    ).format(*scores["intervals"]["auc"], **scores)
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
    answers = {"It can tell apart": can, "How sure": sure, "Not for": limits}
    return {title: f"{text}." for title, text in answers.items()}


def leakage(metrics):
    """`(found, sentences)`: whether the numbers owe something to what they should not."""
    found, said = warnings(metrics), []
    if left_out := metrics.get("left_out"):
        said.append("{images} of {of} images were trained on and left out.".format(**left_out))
    for name, scores in sets_of(metrics).items():
        for what, network, baseline, best in _baselines(scores):
            sentence = f"{name.capitalize()} classes, {what}: the network {network:.3f}, "
            sentence += f"the best baseline ({best}) {baseline:.3f}."
            (found if baseline >= network else said).append(sentence)
    if not found:
        said.insert(0, "No sign of leakage: no image it is scored on, nor a copy, was trained on.")
    if metrics["pretrained"]:
        said.append(metrics["pretrained"])
    return bool(found), found + said


def _baselines(scores):
    """Yields what was measured, the network's score, the best baseline's, and its name."""
    for row in scores["few_shot"][:1]:
        others = {key: row[key]["accuracy"] for key in row if isinstance(row[key], dict)}
        network = others.pop("model")
        best = max(others, key=others.get)
        yield f"{row['ways']}-way one-shot accuracy", network, others[best], best
    for best in sorted(scores.get("baselines", []), key=lambda each: -each["auc"])[:1]:
        yield "ROC AUC of pairs", scores["auc"], best["auc"], best["name"]


def model_card(run, metrics):
    """Title -> name -> value of what a `RunDirectory` is, without a path of the machine."""
    config, splits, threshold = run.config, *map(run.read_json, ("splits.json", "threshold.json"))
    started, history = run.read_json("environment.json"), run.read_history()
    sides = ("train", "val", "test_known", "test_unseen")
    return {
        "Model": {
            "encoder": f"{config.encoder}, {config.embedding_dim} numbers an image",
            "weights": metrics["pretrained"] or "trained from nothing",
            "images": "{} x {} pixels, {} channels".format(*config.image_shape),
            "distance": config.distance,
            "threshold": f"{threshold['threshold']:.4f}, {threshold['chosen_for']}",
        },
        "Data": {
            "source": _without_folders(splits["source"]),
            "classes trained on": len(splits["known_classes"]),
            "classes kept out": len(splits["unseen_classes"]),
            **{f"images, {side.replace('_', ' ')}": len(splits[side]) for side in sides},
        },
        "Training": {
            "loss": f"{config.loss_name}, sampling {config.sampling}",
            "epochs": len(history),
            "minutes": f"{sum(float(row['seconds']) for row in history) / 60:.1f}",
            "started": started["time"],
            "command": " ".join(map(_without_folders, started["command"])),
        },
        "Versions": {
            "python": started["python"],
            **started["versions"],
            **{name: started[name] for name in ("backend", "machine", "commit")},
        },
        "Settings": {
            name: _without_folders(str(value)) for name, value in dataclasses.asdict(config).items()
        },
    }


def _without_folders(text):
    return re.sub(r"[^\s=]*[/\\](?=.)", "", text)


def markdown(title, metrics, card):
    """The model card as text (Mitchell et al., "Model cards for model reporting", 2019)."""
    lines = [f"# {title}", "", *_items(sentences(metrics)), "", "## Leakage", ""]
    lines += [f"- {sentence}" for sentence in leakage(metrics)[1]]
    for head, *rows in tables(metrics):
        lines += ["", *map(_row, (head, ["---"] * len(head), *rows))]
    for heading, facts in card.items():
        lines += ["", f"## {heading}", "", *_items(facts)]
    return "\n".join(lines) + "\n"


def _items(facts):
    return [f"- **{name}**: {value}" for name, value in facts.items()]


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
