"""Trains the network that a config describes.

python train.py                                      drawn leaves, a few minutes
python train.py --data_dir PATH                      your images; settings from what they are
python train.py plantvillage-recipe --data_dir PATH         a recipe by name
python train.py runs/20260101-120000-leaves          continues an unfinished run
python train.py [name | config.json] [--field value] any field of configs.Config
"""

import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path

from configs import parse_command_line
from networks.embedding import start_keras
from pipeline.inventory import advice, inventory
from prepare_data import Dataset, keep_data, load_data
from run_directory import STATE, RunDirectory, RunError
from training import devices

# What needs Keras, SciPy or Matplotlib is imported in functions, so that a wrong config or path
# is told at once.

FAILED, WRONG_INPUT = 1, 2  # exit statuses
MOST_SCORED = 400  # images of each split that the accuracies at the end are taken from
PAIRS_SHOWN = 8  # of each kind, in pairs.png


def main(args=None):
    """Runs the command line; returns the exit status."""
    args, begin = sys.argv[1:] if args is None else args, time.monotonic()
    try:
        run, config, name = _resolve(args)
        run, dataset = _open(run, config, name)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return WRONG_INPUT
    print(f"Run directory: {run.path}", flush=True)
    start_keras(config.seed, config.deterministic)
    from networks.pretrained import WeightsError

    try:
        with devices.scope(config):
            return _train(run, config, dataset, begin).status
    except WeightsError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    except RunError as error:  # a full disk, a folder that vanished, a damaged state
        print(error, file=sys.stderr)
        return FAILED


@dataclasses.dataclass
class TrainedRun:
    """What `train` returns."""

    path: Path  # the run directory
    history: dict  # name -> list, a number an epoch
    threshold: float  # below this distance a pair is the same
    encoder: "keras.Model"  # noqa: F821  pixels -> embeddings
    model: "keras.Model"  # noqa: F821  two images -> distance


def train(config, data=None, *, encoder=None, loss=None, callbacks=(), verbose=1):
    """Trains from Python what the command line trains: a `TrainedRun`.

    Args:
        config: A `Config`; or the path of an unfinished run, which goes on.
        data: `(images, labels)`: a uint8 array or a list of paths, and classes; or a `Dataset`.
            None: `config.data_dir`. The size and channels of an array take the config's place.
        encoder: Any `keras.Model` from raw pixels to (batch, d), used as it is; its d takes the
            place of `embedding_dim`.
        loss: Any Keras loss on (same, distance), or on (labels, embeddings) with
            `sampling="classes"`.
        callbacks: Keras callbacks.
        verbose: 0 prints nothing.

    Raises:
        ValueError: If config or data cannot be used.
        TrainingFailed: If the loss or the embeddings went astray.
        KeyboardInterrupt: If Ctrl-C ended it.
    """
    begin, run = time.monotonic(), None
    parts = {"encoder": encoder, "loss": loss, "callbacks": callbacks}
    with contextlib.ExitStack() as stack:
        if not verbose:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            stack.enter_context(contextlib.redirect_stderr(nothing))
        if isinstance(config, str | os.PathLike):
            run = _unfinished(config)
            config = run.config
        config, dataset = _given(config, data, encoder, loss)
        if run and run.config != config:
            raise RunError(
                f"'{run.path}' goes on with the data and the parts that it began with. Give them "
                f"again. Expected: {run.config.own_parts or 'no own parts'}."
            )
        run, dataset = _open(run, config, "python", dataset)
        start_keras(config.seed, config.deterministic)
        with devices.scope(config):
            fitted = _train(run, config, dataset, begin, **parts)
    if fitted.status == 130:
        raise KeyboardInterrupt(f"Interrupted. What is there lies in {run.path}.")
    if fitted.status:
        from training.validation import TrainingFailed

        raise TrainingFailed(fitted.reason)
    history = {name: [row[name] for row in fitted.history] for name in fitted.history[0]}
    threshold = run.read_json("threshold.json")["threshold"]
    return TrainedRun(run.path, history, threshold, fitted.encoder, fitted.model)


def _given(config, data, encoder, loss):
    """`(config, Dataset or None)` with what is given from Python in the config's place."""
    own = {"encoder": encoder, "loss": loss}
    own = [f"{part} {_name(given)}" for part, given in own.items() if given is not None]
    config = dataclasses.replace(config, own_parts=", ".join(own) or None)
    if isinstance(data, Dataset):
        config = dataclasses.replace(config, data_dir=str(data.index.source))
    elif data is not None:
        images, labels = data
        if hasattr(images, "ndim") and images.ndim in (3, 4):
            config = _shaped(config, (*images.shape[1:], 1)[:3])
        source = keep_data(images, labels, config.cache_dir)
        config, data = dataclasses.replace(config, data_dir=str(source)), None
    if encoder is not None:
        config = dataclasses.replace(config, embedding_dim=encoder.output_shape[-1])
        if None not in encoder.input_shape[1:]:
            config = _shaped(config, encoder.input_shape[1:])
    return config, data


def _shaped(config, shape):
    height, width, channels = shape
    return dataclasses.replace(config, image_size=f"{height}x{width}", channels=channels)


def _name(part):
    return getattr(part, "name", None) or getattr(part, "__name__", type(part).__name__)


def _open(run, config, name, dataset=None):
    """`(RunDirectory, Dataset)`, with all that is known before Keras is needed."""
    from evaluation.held_out import remember_trained

    _check_needs(config, run)
    dataset = dataset or load_data(config)
    if not dataset.index.classes_known and config.sampling == "classes":
        raise RunError(
            f"'{config.data_dir}' gives pairs, and no classes that agree with them. "
            "Use --sampling pairs --loss contrastive."
        )
    print(*inventory(dataset), *advice(dataset, name), sep="\n")
    run = run or RunDirectory.create(config, name)
    run.write_splits(dataset.index, dataset.splits)
    run.write_json("reading.json", dataset.cache.ranges)
    remember_trained(run, dataset)
    return run, dataset


def _check_needs(config, run):
    """Raises a RunError where a package or file that the training needs is not there."""
    weights, continues = config.weights, run and (run / STATE).exists()
    if not (continues or weights in (None, "imagenet") or Path(weights).exists()):
        raise RunError(
            f"weights={weights!r}: no such file. Expected 'imagenet', a finished run, or a weights "
            "file of this network without its top."
        )


def _resolve(args):
    """`(run to continue or None, config, name)` from the command line."""
    if args and Path(args[0]).is_dir():
        run = _unfinished(args[0])
        _no_own_parts(run.config)
        if len(args) > 1:
            raise RunError(f"A run continues with its own config. Received: {args[1:]}.")
        return run, run.config, run.path.name
    config, name = parse_command_line(args, "train.py")
    _no_own_parts(config)
    return None, config, name


def _unfinished(path):
    run = RunDirectory(path)
    if run.is_finished:
        raise RunError(f"'{run.path}' is finished. Start a new run, or continue another.")
    return run


def _no_own_parts(config):
    if config.own_parts:
        raise RunError(
            f"This run has parts of its own ({config.own_parts}). Go on from Python: "
            "train(RUN or Config, encoder=..., loss=...)."
        )


def _train(run, config, dataset, begin, **parts):
    """Trains, and leaves weights, threshold and plots in the run directory.

    `max_minutes` count from `begin` (`time.monotonic`).

    Returns:
        A `fit.Fitted`; its status is 0, 1 if the training failed, 130 if it was interrupted.

    Raises:
        WeightsError: If pretrained weights do not fit.
    """
    from training.fit import FINISHED, INTERRUPTED, fit_encoder

    write_pairs(run, config, dataset)
    fitted = fit_encoder(run, config, dataset, begin, **parts)
    if fitted.encoder is not None:
        write_outputs(run, config, dataset, fitted)
    if fitted.status == FINISHED:
        run.mark_finished()
    if fitted.status == INTERRUPTED:
        print(f"Interrupted. Continue with: python train.py {run.path}")
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes in all. Run directory: {run.path}")
    if fitted.status == FINISHED:
        print("Next:", *(f"  python {command}" for command in next_commands(run)), sep="\n")
    return fitted


def next_commands(run):
    """What one types after a training."""
    return [
        f"evaluate.py {run.path}",
        f"predict.py compare {run.path} ONE.jpg OTHER.jpg",
        f"export.py {run.path}",
    ]


def write_pairs(run, config, dataset):
    """Writes `pairs.png`: some training pairs, genuine above and impostor below."""
    from evaluation import figures
    from pipeline.pairs import PairBatches

    few = {"sampling": "pairs", "loss": "contrastive", "pairs_per_batch": 2 * PAIRS_SHOWN}
    few |= {"distance": "euclidean", "distillation": 0.0}
    pairs = dataclasses.replace(config, **few)
    try:
        left, right, same = PairBatches(
            dataset.index, dataset.pixels, dataset.splits.train, pairs
        ).rows(0)
    except ValueError:  # no pair of one kind: training will say so
        return
    names = dataset.index.class_names, dataset.index.labels
    shown = figures.plot_training_pairs(dataset.pixels, left, right, same, *names)
    run.write("pairs.png", shown.savefig)


def write_outputs(run, config, dataset, fitted):
    """Writes models, threshold and figures of a `fit.Fitted` that has an encoder."""
    import numpy as np

    from evaluation import figures, references, thresholds, verification
    from siamese_network_funcs import distance_function
    from training.validation import Validator

    validator = Validator(dataset, config)
    model, distance = fitted.model, distance_function(fitted.model)
    run.write("encoder.keras", fitted.encoder.save)
    run.write("model.weights.h5", model.save_weights)
    run.write("architecture.json", lambda path: path.write_text(model.to_json()))
    embeddings = validator.embed(fitted.encoder)
    pairs = validator.left, validator.right
    distances = verification.pair_distances(embeddings, *pairs, distance)
    threshold = thresholds.choose_threshold(
        validator.same, distances, config.false_accept_rate, validator.classes[np.stack(pairs)]
    )
    enrolled = None
    if dataset.index.classes_known:
        images = embeddings, validator.classes, validator.forged
        unknown = references.unknown_thresholds(
            *(rows[~validator.forged] for rows in images[:2]), distance
        )
        rng = np.random.default_rng([config.seed, 6])
        enrolled = references.reference_thresholds(*images, rng, distance)
    else:  # of images of two pairs nobody knows whether they show the same
        unknown = references.unknown_thresholds_of_pairs(distances[~validator.same])
    if enrolled is None:
        rates = [thresholds.equal_error_rate(validator.same, distances)[0]]
        enrolled = {"rule": "nearest", "impostors": references.IMPOSTORS["random"], **unknown}
        enrolled["equal_error_rates"] = rates * len(unknown["references"])
    run.write_json("threshold.json", threshold | {"unknown": unknown, "enrolled": enrolled})
    best = {}
    if fitted.best_epoch is not None:
        best = fitted.history[fitted.best_epoch - 1]
        for name in ("accuracy", "loss"):
            title = f"{name.capitalize()} of pairs, {run.path.name}"
            shown = figures.plot_curves(fitted.history, name, title, fitted.best_epoch)
            run.write(f"{name}.png", shown.savefig)
    cut = threshold["threshold"]
    run.write("model.keras", model.save)  # last: it says that the rest is there
    shown = ", ".join(f"{name} {best[name]:.4f}" for name in best if name.startswith("val_"))
    if best:
        print(f"Weights of epoch {fitted.best_epoch}: {shown}.")
    print(*threshold["warnings"], sep="\n", end="\n" if threshold["warnings"] else "")
    print(f"Same below a distance of {cut:.3f} ({threshold['chosen_for']}).")
    print_accuracies(config, dataset, fitted.encoder, distance, cut)


def print_accuracies(config, dataset, encoder, distance, threshold):
    """Prints the accuracy on training, validation and test pairs at two distances.

    Beside them stands the best that any distance gives, as published for signatures: it flatters.
    """
    import numpy as np

    from evaluation import thresholds, verification
    from networks.embedding import embed
    from training.validation import balanced_accuracy

    cuts = config.accuracy_distance, threshold
    print(
        f"Accuracy of pairs at a distance of {cuts[0]:g}, of {threshold:.3f}, at the best of all:"
    )
    for name, rows in dataset.splits.items():
        if not len(rows):
            continue
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_SCORED).astype(int))]
        try:
            rng = np.random.default_rng(config.seed)
            pairs = verification.verification_pairs(dataset, rows, rng)
        except ValueError:  # too few images for a pair of each kind
            continue
        embeddings = embed(encoder, dataset.pixels, rows)
        distances = verification.pair_distances(embeddings, *pairs[:2], distance)
        found = [balanced_accuracy(pairs[2], distances, cut) for cut in cuts]
        found.append(thresholds.best_threshold(pairs[2], distances)[0])
        print(f"  {name.replace('_', ' ') + ':':<13} {'  '.join(f'{one:.1%}' for one in found)}")


if __name__ == "__main__":
    sys.exit(main())
