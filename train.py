"""Trains the network that a config describes.

python train.py                                      drawn leaves, a few minutes
python train.py --data_dir PATH                      your images
python train.py plantvillage-recipe --data_dir PATH  a recipe by name
python train.py runs/20260101-120000-leaves          continues an unfinished run
python train.py [name | config.json] [--field value] any field of configs.Config
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

from configs import parse_command_line
from networks.embedding import start_keras
from pipeline.image_cache import cache_dir
from pipeline.inventory import advice, inventory
from prepare_data import Dataset, keep_data, load_data
from run_directory import STATE, RunDirectory, RunError, silence

# What needs Keras, SciPy or Matplotlib is imported in functions, so that a wrong config or path
# is told at once.

FAILED, WRONG_INPUT = 1, 2  # exit statuses
MOST_SCORED = 200  # images of each split that the accuracies at the end are taken from
PAIRS_SHOWN = 8  # of each kind, in pairs.png


def main(args=None):
    """Runs the command line; returns the exit status."""
    args, begin = sys.argv[1:] if args is None else args, time.monotonic()
    try:
        run, config, name = _asked(args)
        run, dataset = open_run(run, config, name)
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return WRONG_INPUT
    start_keras(config.seed, config.deterministic)
    from networks.pretrained import WeightsError

    try:
        return fit_run(run, dataset, begin).status
    except (WeightsError, RunError) as error:  # a full disk, a folder that vanished
        print(error, file=sys.stderr)
        return WRONG_INPUT if isinstance(error, WeightsError) else FAILED


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
    with silence(verbose):
        if isinstance(config, str | os.PathLike):
            run = unfinished(config)
            config = run.config
        config, dataset = with_own_parts(config, data, encoder, loss)
        if run and run.config != config:
            raise RunError(
                f"'{run.path}' goes on with the data and the parts that it began with. Give them "
                f"again. Expected: {run.config.own_parts or 'no own parts'}."
            )
        run, dataset = open_run(run, config, "python", dataset)
        start_keras(config.seed, config.deterministic)
        fitted = fit_run(run, dataset, begin, encoder=encoder, loss=loss, callbacks=callbacks)
    if fitted.status == 130:
        raise KeyboardInterrupt(f"Interrupted. What is there lies in {run.path}.")
    if fitted.status:
        from training.validation import TrainingFailed

        raise TrainingFailed(fitted.reason)
    names = fitted.history[0] if fitted.history else ()  # none where epochs=0
    history = {name: [row[name] for row in fitted.history] for name in names}
    threshold = run.read_json("threshold.json")["threshold"]
    return TrainedRun(run.path, history, threshold, fitted.encoder, fitted.model)


def with_own_parts(config, data, encoder, loss):
    """`(config, Dataset or None)` with what is given from Python in the config's place."""
    own = {"encoder": encoder, "loss": loss}
    names = [
        f"{part} {getattr(given, 'name', None) or getattr(given, '__name__', type(given).__name__)}"
        for part, given in own.items()
        if given is not None
    ]
    changes, shape = {"own_parts": ", ".join(names) or None}, ()
    if isinstance(data, Dataset):
        changes["data_dir"] = str(data.index.source)
    elif data is not None:
        images, labels = data
        changes["data_dir"] = str(keep_data(images, labels, cache_dir(config)))
        data, shape = None, getattr(images, "shape", ())[1:]
    if encoder is not None:
        changes["embedding_dim"] = encoder.output_shape[-1]
        if None not in encoder.input_shape[1:]:
            shape = encoder.input_shape[1:]
    if len(shape) > 1:
        height, width, changes["channels"] = (*shape, 1)[:3]
        changes["image_size"] = f"{height}x{width}"
    return dataclasses.replace(config, **changes), data


def _asked(args):
    """`(run to continue or None, config, name)` from the command line."""
    if args and Path(args[0]).is_dir():
        if len(args) > 1:
            raise RunError(f"A run continues with its own config. Received: {args[1:]}.")
        run = unfinished(args[0])
        config, name = run.config, run.path.name
    else:
        run, (config, name) = None, parse_command_line(args, "train.py")
    if config.own_parts:
        raise RunError(
            f"This run has parts of its own ({config.own_parts}). Go on from Python: "
            "train(RUN or Config, encoder=..., loss=...)."
        )
    return run, config, name


def unfinished(path):
    """The `RunDirectory` of a training that can go on."""
    run = RunDirectory(path)
    if run.is_finished:
        raise RunError(f"'{run.path}' is finished. Start a new run, or continue another.")
    return run


def open_run(run, config, name, dataset=None):
    """`(RunDirectory, Dataset)`, a new run where none is given; all that needs no Keras.

    Raises:
        ValueError: If data or weights cannot be used, or a run began with other images.
    """
    from evaluation.held_out import remember_trained

    begun = run is not None and (run / STATE).exists()
    if not (begun or config.weights in (None, "imagenet") or Path(config.weights).exists()):
        raise RunError(
            f"weights={config.weights!r}: no such file. Expected 'imagenet', a finished run, or a "
            "weights file of this network without its top."
        )
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
    print(f"Run directory: {run.path}", flush=True)
    return run, dataset


def fit_run(run, dataset, begin, **parts):
    """Trains, and leaves weights, threshold and plots in the run directory: a `fit.Fitted`.

    `max_minutes` count from `begin` (`time.monotonic`). `parts` are as for `train`.

    Raises:
        WeightsError: If pretrained weights do not fit.
        RunError: If a file cannot be written, or the state is damaged.
    """
    from training.fit import FINISHED, INTERRUPTED, fit_encoder

    config = run.config
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
        print(
            "Next:",
            f"  python evaluate.py {run.path}",
            f"  python predict.py compare {run.path} ONE.jpg OTHER.jpg",
            f"  python export.py {run.path} --format onnx",
            sep="\n",
        )
    return fitted


def write_pairs(run, config, dataset):
    """Writes `pairs.png`: some training pairs, genuine above and impostor below."""
    from evaluation import figures
    from pipeline.pairs import PairBatches

    few = {"sampling": "pairs", "loss": "contrastive", "pairs_per_batch": 2 * PAIRS_SHOWN}
    config = dataclasses.replace(config, **few, distance="euclidean", distillation=0.0)
    batches = PairBatches(dataset.index, dataset.pixels, dataset.splits.train, config)
    try:
        left, right, same = batches.rows(0)
    except ValueError:  # no pair of one kind: training will say so
        return
    names = dataset.index.class_names, dataset.index.labels
    shown = figures.plot_training_pairs(dataset.pixels, left, right, same, *names)
    run.write("pairs.png", shown.savefig)


def write_outputs(run, config, dataset, fitted):
    """Writes models, threshold and figures of a `fit.Fitted` that has an encoder."""
    from evaluation import figures
    from siamese_network_funcs import distance_function
    from training.validation import Validator

    distance = distance_function(fitted.model)
    run.write("encoder.keras", fitted.encoder.save)
    run.write("model.weights.h5", fitted.model.save_weights)
    run.write_text("architecture.json", fitted.model.to_json())
    threshold = Validator(dataset, config).choose_thresholds(fitted.encoder, distance)
    run.write_json("threshold.json", threshold)
    if fitted.best_epoch:
        best = fitted.history[fitted.best_epoch - 1]
        for name in ("accuracy", "loss"):
            title = f"{name.capitalize()} of pairs, {run.path.name}"
            shown = figures.plot_curves(fitted.history, name, title, fitted.best_epoch)
            run.write(f"{name}.png", shown.savefig)
        shown = ", ".join(f"{name} {best[name]:.4f}" for name in best if name.startswith("val_"))
        print(f"Weights of epoch {fitted.best_epoch}: {shown}.")
    run.write("model.keras", fitted.model.save)  # last: it says that the rest is there
    for warning in threshold["warnings"]:
        print(warning)
    print(f"Same below a distance of {threshold['threshold']:.3f} ({threshold['chosen_for']}).")
    print_accuracies(config, dataset, fitted.encoder, distance, threshold["threshold"])


def print_accuracies(config, dataset, encoder, distance, threshold):
    """Prints the accuracy on training, validation and test pairs at two distances.

    Beside them stands the best that any distance gives, as published for signatures: it flatters.
    """
    import numpy as np

    from evaluation import thresholds, verification
    from networks.embedding import embed
    from siamese_network_funcs import accuracy

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
        found = [float(accuracy(pairs[2], distances, cut)) for cut in cuts]
        found.append(thresholds.best_threshold(pairs[2], distances)[0])
        print(f"  {name.replace('_', ' ') + ':':<13} {'  '.join(f'{one:.1%}' for one in found)}")


if __name__ == "__main__":
    sys.exit(main())
