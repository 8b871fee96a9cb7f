"""What a run leaves on disk, and reading it back. Every file is written whole or not at all."""

import contextlib
import csv
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from configs import read_config

STATE = "resume.npz"  # there while a run is unfinished


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says how to mend it."""


def write_atomically(path, write):
    """Has a file written beside by `write(path)`, flushes it, and renames it into place.

    A RunError if it cannot be written: the disk is full, the folder is gone.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # the same suffix
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        why = error.strerror or str(error).splitlines()[0]
        said = f"'{path}' cannot be written: {why}. What was there before is whole."
        raise RunError(said) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text as it is, in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", newline=""))


class RunDirectory:
    """One run's folder; a RunError if the path is none: it holds no `config.json`."""

    def __init__(self, path):
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise RunError(f"'{path}' is no run directory: it holds no config.json.")

    @classmethod
    def create(cls, config, name):
        """A new one with `config.json` and `environment.json`, named by time and config's name.

        A RunError if `config.run_name` is taken.
        """
        stem = config.run_name or f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
        path = Path(config.runs_dir) / stem
        partial = path.with_name(f".partial-{os.getpid()}-{stem}")
        partial.mkdir(parents=True, exist_ok=True)
        write_text(partial / "config.json", config.to_json())
        cls(partial).write_json("environment.json", environment())
        for count in itertools.count(2):
            try:
                os.rename(partial, path)  # whole at once, so that whatever is there continues
                return cls(path)
            except OSError as error:
                if not path.exists():
                    raise
                if config.run_name:
                    shutil.rmtree(partial)
                    raise RunError(
                        f"'{path}' exists already. Continue it with `python train.py {path}` "
                        "or choose another run_name."
                    ) from error
                path = path.with_name(f"{stem}-{count}")  # two runs of one second

    def __truediv__(self, name):
        return self.path / name

    @functools.cached_property
    def config(self):
        """The run's own config; what an older file lacks is printed."""
        return read_config(self / "config.json")

    @property
    def is_finished(self):
        """Whether the training came to its end."""
        return (self / "model.keras").exists() and not (self / STATE).exists()

    def write(self, name, write):
        """Writes a file of the run, as `write_atomically` does."""
        write_atomically(self / name, write)

    def write_text(self, name, text):
        """Writes a text file, whole."""
        write_text(self / name, text)

    def write_json(self, name, values):
        """Writes a JSON file, whole."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def read_json(self, name):
        """Reads a JSON file of the run; a RunError if it is not there, or is no JSON."""
        path = self._existing(name)
        try:
            return json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise RunError(f"'{path}' is damaged: {error}.") from error

    def write_splits(self, index, splits):
        """Writes `splits.json`: the names of the images on each side, and of their classes.

        A RunError if the run began with others: images held out would be trained on.
        """
        values = {"source": str(index.source)}
        for kind, rows in (("known", splits.train), ("unseen", splits.test_unseen)):
            labels = np.unique(index.labels[rows])
            values[f"{kind}_classes"] = [index.class_names[label] for label in labels]
        values |= {name: [index.names[row] for row in rows] for name, rows in splits.items()}
        if (self / "splits.json").exists() and self.read_json("splits.json") != values:
            raise RunError(
                f"The images of '{index.source}' are not those that '{self.path}' began with. "
                "Bring them back, or start a new run."
            )
        self.write_json("splits.json", values)

    @functools.cached_property
    def ranges(self):
        """Ranges of numbers by which the run's images were read, see `pipeline.reading.decode`."""
        return self.read_json("reading.json") if (self / "reading.json").exists() else {}

    def write_history(self, rows):
        """Writes `history.csv`, a line an epoch, from dicts with equal keys."""
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        self.write_text("history.csv", "".join(",".join(map(str, line)) + "\n" for line in lines))

    def read_history(self):
        """The lines of `history.csv` as dicts of text; none where nothing was trained."""
        path = self / "history.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    def save_state(self, arrays, facts):
        """Saves what continuing needs: a dict of lists of arrays, and one that JSON can hold."""
        flat = {f"{name}-{i}": a for name, values in arrays.items() for i, a in enumerate(values)}
        flat["facts"] = np.array(json.dumps(facts))
        self.write(STATE, lambda path: np.savez(path, **flat))

    def load_state(self):
        """`(arrays, facts)` as `save_state` saved them, or None before it did."""
        if not (self / STATE).exists():
            return None
        arrays = {}
        try:
            with np.load(self / STATE, allow_pickle=False) as file:
                for key in file.files:
                    if key != "facts":
                        arrays.setdefault(key.rpartition("-")[0], []).append(file[key])
                return arrays, json.loads(str(file["facts"]))
        except Exception as error:  # zip, zlib, NumPy, JSON: each has its own
            said = f"'{self / STATE}' is damaged: {error}. Remove it to train from the beginning."
            raise RunError(said) from error

    def mark_finished(self):
        """Drops the state: there is nothing to continue."""
        (self / STATE).unlink(missing_ok=True)

    def load_encoder(self):
        """The trained encoder: raw pixels -> embeddings. A RunError if there is none."""
        return self._load("encoder.keras")

    def load_model(self):
        """The two-input model: `[left, right]` raw pixels -> distance. A RunError if none."""
        import siamese_network_funcs  # noqa: F401  registers euclidean_distance

        return self._load("model.keras")

    def load_distance(self):
        """None where the distance is Euclidean; else what `distance_function` gives."""
        if self.config.distance == "euclidean":
            return None
        from siamese_network_funcs import distance_function

        return distance_function(self.load_model())

    def _existing(self, name):
        if not (self / name).is_file():
            raise RunError(f"'{self.path}' holds no {name}. Is the run finished?")
        return self / name

    def _load(self, name):
        import keras

        path = self._existing(name)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras, h5py, zip: each has its own
            why = str(error).strip().splitlines()[0]
            raise RunError(f"'{path}' cannot be loaded: {why}") from error


def environment():
    """Where and how a run was started: command, versions, machine, commit."""
    versions, processor, commit = {}, platform.processor(), ""
    for package in ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, IndexError):  # Linux names it here alone
        processor = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    with contextlib.suppress(OSError):  # a plus says that files differ from the commit
        git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty=+"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions,
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {processor}",
        "commit": commit,
    }


@contextlib.contextmanager
def silence(verbose):
    """Hides what is printed, on both streams, unless `verbose`."""
    if verbose:
        yield
        return
    out, err = contextlib.redirect_stdout, contextlib.redirect_stderr
    with open(os.devnull, "w") as nothing, out(nothing), err(nothing):
        yield


def require_package(package, purpose):
    """Raises a RunError where an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        mend = "pip install -r requirements-extra.txt"
        raise RunError(f"{purpose} needs the package {package}: {mend}")
