"""What a training leaves beside its history and state: models, threshold, figures."""

import numpy as np

from configs import Config
from evaluation import figures, verification
from networks.embedding import embed
from pipeline.pairs import PairBatches
from pipeline.sheets import draw_rows
from siamese_network_funcs import accuracy, distance_function

MOST_SCORED = 64  # training and test images each that the accuracies at the end are taken from
PAIRS_SHOWN = 8  # of each kind, in pairs.png


def write_pairs(run, dataset):
    """Writes `pairs.png`: some training pairs, genuine above and impostor below."""
    seed, skilled = run.config.seed, run.config.skilled_share
    config = Config(seed=seed, skilled_share=skilled, pairs_per_batch=2 * PAIRS_SHOWN)
    index, pixels, rows = dataset.index, dataset.pixels, []
    try:
        left, right, _ = PairBatches(index, pixels, dataset.splits.train, config).rows(0)
    except ValueError:  # no pair of one kind: training will say so
        return

    def shown(row):
        name = figures.short(index.class_names[index.labels[row]])
        return pixels[row], name + ", forged" * int(index.forged[row])

    kinds = ("genuine: one class", figures.GREEN), ("impostor: two classes", figures.RED)
    pairs = np.stack([left, right], axis=1).reshape(2, 2, -1)  # of each kind two lines
    for (title, color), (first, second) in zip(kinds, pairs, strict=True):
        rows.append((title, color, [shown(row) for row in first]))
        rows.append(("", color, [shown(row) for row in second]))
    run.write("pairs.png", draw_rows(rows).save)


def write_outputs(run, recorder, model, encoder):
    """Writes models, threshold and curves, prints how well they do, and gives the threshold.

    `model` is the two-input model around `encoder`; its weights are those of the best epoch of the
    `Recorder`, where anything was trained.
    """
    validator, best_epoch = recorder.validator, recorder.best_epoch
    distance = distance_function(model)
    run.write("encoder.keras", encoder.save)
    run.write("model.weights.h5", model.save_weights)
    run.write_text("architecture.json", model.to_json())
    embeddings = embed(encoder, validator.dataset.pixels, validator.rows)
    distances = verification.pair_distances(embeddings, validator.left, validator.right, distance)
    chosen = validator.choose_thresholds(embeddings, distances, distance)
    run.write_json("threshold.json", chosen)
    if best_epoch:
        for name in ("accuracy", "loss"):
            title = f"{name.capitalize()} of pairs, {run.path.name}"
            curves = figures.plot_curves(recorder.history, name, title, best_epoch)
            run.write(f"{name}.png", curves.savefig)
        best = recorder.history[best_epoch - 1].items()
        shown = ", ".join(f"{name} {value:.4f}" for name, value in best if name.startswith("val_"))
        print(f"Weights of epoch {best_epoch}: {shown}.")
    run.write("model.keras", model.save)  # last: it says that the rest is there
    for warning in chosen["warnings"]:
        print(warning)
    print(f"Same below a distance of {chosen['threshold']:.3f} ({chosen['chosen_for']}).")
    _print_accuracies(validator, distances, encoder, distance, chosen["threshold"])
    return chosen["threshold"]


def _print_accuracies(validator, val_distances, encoder, distance, threshold):
    """Prints the accuracy on training, validation and test pairs at two distances.

    Beside them stands the best that any distance gives, as published for signatures: it flatters.
    `val_distances` are those of the validation pairs.
    """
    dataset, config = validator.dataset, validator.config
    cuts = config.accuracy_distance, threshold
    print(
        f"Accuracy of pairs at a distance of {cuts[0]:g}, of {threshold:.3f}, at the best of all:"
    )
    for name, rows in dataset.splits.items():
        if not len(rows):
            continue
        title, same, distances = name.replace("_", " ") + ":", validator.same, val_distances
        if name != "val":
            rows = dataset.sample(rows, MOST_SCORED, np.random.default_rng(config.seed))
            try:
                rng = np.random.default_rng(config.seed)
                left, right, same = verification.verification_pairs(dataset, rows, rng)
            except ValueError:
                print(f"  {title:<13} no pair of each kind")
                continue
            embeddings = embed(encoder, dataset.pixels, rows)
            distances = verification.pair_distances(embeddings, left, right, distance)
        found = [float(accuracy(same, distances, cut)) for cut in cuts]
        curve = verification.operating_points(same, distances)[:2]
        found.append(verification.curve_scores(*curve)["best_accuracy"])
        print(f"  {title:<13} {'  '.join(f'{share:.1%}' for share in found)}")
