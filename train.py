"""Trains the network that a config describes.

python train.py                                      drawn leaves, a few minutes
python train.py --data_dir PATH                      your images
python train.py plantvillage-recipe --data_dir PATH  a recipe by name
python train.py runs/20260101-120000-leaves          continues an unfinished run
python train.py [name | config.json] [--field value] any field of configs.Config
"""

import dataclasses
import sys
import time
from pathlib import Path

from configs import Config, parse_command_line
from networks.embedding import require_backend, start_keras
from pipeline.files import DataError
from pipeline.image_cache import cache_dir
from pipeline.inventory import advice, inventory
from prepare_data import Dataset, keep_data, load_data
from run_directory import STATE, RunDirectory, RunError, silence

# What needs Keras, SciPy or Matplotlib is imported in functions, so that a wrong config or path
# is told at once.

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses


def main(args=None):
    """Runs the command line; returns the exit status."""
    args, begin = sys.argv[1:] if args is None else args, time.monotonic()
    try:
        if args and Path(args[0]).is_dir():
            if args[1:]:
                raise RunError(f"A run continues with its own config. Received: {args[1:]}.")
            run, dataset = open_run(args[0], args[0])
        else:
            run, dataset = open_run(*parse_command_line(args, "train.py"))
    except (ValueError, OSError) as error:  # DataError and RunError are ValueErrors
        print(error, file=sys.stderr)
        return WRONG_INPUT
    start_keras(run.config.seed, run.config.deterministic)
    from networks.pretrained import WeightsError
    from training.fit import Interrupted, TrainingFailed, fit_run

    statuses = {WeightsError: WRONG_INPUT, Interrupted: INTERRUPTED}
    try:
        fit_run(run, dataset, begin)
    except (WeightsError, DataError, RunError, TrainingFailed, Interrupted) as error:
        print(error, file=sys.stderr)  # a full disk, a folder that vanished
        return statuses.get(type(error), FAILED)
    return 0


def train(config, data=None, *, encoder=None, loss=None, callbacks=(), verbose=1):
    """Trains from Python what the command line trains: a `training.fit.TrainedRun`.

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
    begin = time.monotonic()
    with silence(verbose):
        run, dataset = open_run(config, "python", data, encoder, loss)
        start_keras(run.config.seed, run.config.deterministic)
        from training.fit import fit_run

        return fit_run(run, dataset, begin, encoder=encoder, loss=loss, callbacks=callbacks)


def open_run(start, name, data=None, encoder=None, loss=None):
    """`(RunDirectory, Dataset)` of what is to be trained: all that needs no Keras.

    `start`, `data`, `encoder` and `loss` are as for `train`; `name` is a new run's, beside its
    time. A ValueError if data or weights cannot be used, or a run began with other images or parts.
    """
    require_backend()
    run = None if isinstance(start, Config) else RunDirectory(start)
    if run and run.is_finished:
        raise RunError(f"'{run.path}' is finished. Start a new run, or continue another.")
    begun = run.config if run else start
    config, dataset = with_own_parts(begun, data, encoder, loss)
    if config != begun and (run or (begun.own_parts and not config.own_parts)):
        raise RunError(
            "A run goes on with the data and the parts that it began with. Expected: "
            f"{begun.own_parts or 'no own parts'}. Give them again, from Python: "
            "train(RUN or Config, data, encoder=..., loss=...)."
        )
    continues = run and (run / STATE).exists()
    if not (continues or config.weights in (None, "imagenet") or Path(config.weights).exists()):
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
    from evaluation.held_out import remember_trained

    remember_trained(run, dataset)
    print(f"Run directory: {run.path}", flush=True)
    return run, dataset


def with_own_parts(config, data, encoder, loss):
    """`(config, Dataset or None)` with what is given from Python in the config's place."""
    names = [
        f"{part} {getattr(given, 'name', None) or getattr(given, '__name__', type(given).__name__)}"
        for part, given in (("encoder", encoder), ("loss", loss))
        if given is not None
    ]
    changes, shape, dataset = {"own_parts": ", ".join(names) or None}, (), None
    if isinstance(data, Dataset):
        dataset, changes["data_dir"] = data, str(data.index.source)
    elif data is not None:
        images, labels = data
        changes["data_dir"] = str(keep_data(images, labels, cache_dir(config)))
        shape = getattr(images, "shape", ())[1:]
    if encoder is not None:
        changes["embedding_dim"] = encoder.output_shape[-1]
        if None not in encoder.input_shape[1:]:
            shape = encoder.input_shape[1:]
    if len(shape) > 1:
        height, width, *channels = shape
        changes |= {"image_size": f"{height}x{width}", "channels": channels[0] if channels else 1}
    return dataclasses.replace(config, **changes), dataset


if __name__ == "__main__":
    sys.exit(main())
