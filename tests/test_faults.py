"""Runs that are killed, starved of disk, or robbed of their folders; the long ones are slow.

python -m pytest -m slow tests/test_faults.py
"""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_colors
from PIL import Image

from configs import Config
from run_directory import STATE, RunDirectory, RunError

ROOT = Path(__file__).parent.parent
TINY = (
    "leaves --data_dir images --image_size 16 --classes_per_batch 4 --images_per_class 4 "
    "--steps_per_epoch 4 --epochs 6 --patience 4 --embedding_dim 8 --deterministic True "
    "--precision float32 --max_minutes 1000 --run_name run"  # the limit is off, whatever the load
).split()
SCORED = "evaluate runs/run --trials 50 --ways 2 5 --shots 1".split()
FOUND = "predict search runs/run images/class0/0.png --gallery images --json".split()
EXPORTED = "export runs/run --format onnx tf_saved_model".split()

# Each command runs in a process of its own, forked where Keras is imported but not yet used: that
# takes half of the time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train", "evaluate", "predict", "export", "fit", "test_faults"])


def obey(folder, command, kill_at, started):
    """Runs a command in a folder, in a process of its own that notes what it says.

    It kills itself before the n-th time that it opens for writing, renames or removes something
    in the folder, which is where a half-done state could be left; 0 only counts these.
    """
    os.chdir(folder)
    for number, name in ((1, "said"), (2, "errors")):
        os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    events, here = 0, os.getcwd()

    def watch(event, args):
        nonlocal events
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and args[2] and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and isinstance(args[0], (str, bytes)):
            events += os.path.abspath(os.fsdecode(args[0])).startswith(here)
            if events == kill_at and kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    name, *arguments = command
    started.set()
    status = importlib.import_module(name).main(arguments)
    print("events", events, file=sys.stderr)
    sys.exit(status)


@pytest.fixture
def workplace(tmp_path):
    """A folder with six classes of ten coloured noise images."""
    return draw_images(tmp_path / "work")


def draw_images(folder):
    write_colors(folder / "images", 6, 10)
    return folder


def run(folder, command, kill_at=0, seconds=600):
    """Runs a command, and kills it after some seconds: exit status, and what it said on both."""
    started = PROCESSES.Event()
    process = PROCESSES.Process(target=obey, args=(folder, command, kill_at, started))
    process.start()
    started.wait(300)
    process.join(seconds)
    process.kill()
    process.join()
    said, errors = ((folder.parent / name).read_text() for name in ("said", "errors"))
    assert "Traceback" not in errors, errors
    return process.exitcode, said, errors


def arrays_in(path):
    """All arrays of an HDF5 file by name."""
    names = []
    with h5py.File(path) as file:
        file.visit(names.append)
        return {n: file[n][()] for n in names if isinstance(file[n], h5py.Dataset)}


def history(folder):
    rows = RunDirectory(folder / "runs/run").read_history()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# What must be there after each command, in a form that can be compared.


def prepared(folder, said):
    (cache,) = (path for path in (folder / "data/cache").iterdir() if path.is_dir())
    sheet = np.asarray(Image.open(cache / "contact_sheet.png"))
    return [*(np.fromfile(cache / name, np.uint8) for name in ("values", "rows")), sheet]


def trained(folder, said):
    out = folder / "runs/run"
    assert RunDirectory(out).is_finished
    for figure in ("accuracy.png", "loss.png", "pairs.png"):
        Image.open(out / figure).load()
    rows, threshold = history(folder), json.loads((out / "threshold.json").read_text())
    assert [row["epoch"] for row in rows] == [str(1 + at) for at in range(len(rows))]
    return [rows, threshold, arrays_in(out / "model.weights.h5")]


def scored(folder, said):
    Image.open(folder / "runs/run/n_way.png").load()
    assert (folder / "runs/run/report.html").read_text().endswith("</html>\n")
    return [json.loads((folder / "runs/run/metrics.json").read_text())]


def exported(folder, said):
    names = sorted(path.name for path in (folder / "runs/run/export").iterdir())
    return [[name for name in names if not name.startswith(".partial")], len(said.splitlines())]


COMMANDS = {  # command, what it leaves, what to remove to begin again, kills
    "prepare": (["prepare_data", "images", "--image_size", "16"], prepared, "data", 15),
    "train": (["train", *TINY], trained, "runs", 16),
    "evaluate": (SCORED, scored, "runs/run/metrics.json", 10),
    "search": (FOUND, lambda _, said: [json.loads(said)], "runs/run/embeddings", 9),
    "export": (EXPORTED, exported, "runs/run/export", 6),
}


def again(folder, command):
    """The command, or what continues it."""
    begun = command[0] == "train" and (folder / "runs/run").exists()
    return ["train", "runs/run"] if begun else command


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_anywhere_it_continues_and_ends_the_same(name, workplace, tmp_path):
    """Three kills, then it is left to end; half of them before a file changes, half at any time."""
    command, result, undone, kills = COMMANDS[name]
    rng = np.random.default_rng(len(name))
    if name not in ("prepare", "train"):
        assert run(workplace, COMMANDS["train"][0])[0] == 0
    killed = shutil.copytree(workplace, tmp_path / "killed")
    begin = time.monotonic()
    status, said, errors = run(workplace, command)
    seconds, events = time.monotonic() - begin, int(errors.rpartition("events ")[2])
    assert status == 0, errors
    expected, done = result(workplace, said), 0
    while done < kills:
        at, limit = (
            (int(rng.integers(1, events + 1)), 600) if done % 2 else (0, rng.uniform() * seconds)
        )
        status, *output = run(killed, again(killed, command), at, limit)
        assert status in (0, -signal.SIGKILL), output[1]
        done += status != 0
        if status and (done % 3 == 0 or done == kills):
            status, *output = run(killed, again(killed, command))
            assert status == 0, output[1]
        if status == 0:
            np.testing.assert_equal(result(killed, output[0]), expected)
            remove(killed / undone)
        print(f"{name}: {done} kills in {time.monotonic() - begin:.0f} s", flush=True)


# Disks


@pytest.fixture
def disk(tmp_path):
    """The images, on a disk of 64 MB."""
    (folder := tmp_path / "disk").mkdir()
    mount = [*"mount -t tmpfs -o size=64m tmpfs".split(), folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here: that needs root")
    yield draw_images(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Takes all space but a few kilobytes, in a file that is given back."""
    path = folder / "fill"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


THREADS = ThreadPoolExecutor(1)


def when(condition, folder, command):
    """Starts a command and waits until something is true; gives the future of its end."""
    future = THREADS.submit(run, folder, command)
    while not condition() and not future.done():
        time.sleep(0.02)
    return future


LONG = [*TINY, "--epochs", "100000", "--patience", "100000"]


def assert_told(outcome, *words):
    """One sentence, and a status that is not 0."""
    status, _, errors = outcome
    (sentence,) = [line for line in errors.splitlines() if any(word in line for word in words)]
    assert status in (1, 2), errors


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_state(disk):
    state = disk / "runs/run" / STATE
    training = when(state.exists, disk, ["train", *LONG])
    full = fill(disk)
    assert_told(training.result(), "cannot be written: No space left on device")
    arrays, facts = RunDirectory(disk / "runs/run").load_state()
    assert facts["epoch"] >= 1 and all(np.isfinite(array).all() for array in arrays["model"])
    assert len(history(disk)) - facts["epoch"] in (0, 1)
    full.unlink()
    config = json.loads((disk / "runs/run/config.json").read_text())
    (disk / "runs/run/config.json").write_text(json.dumps(config | {"epochs": facts["epoch"] + 2}))
    assert run(disk, ["train", "runs/run"])[0] == 0
    assert len(history(disk)) == facts["epoch"] + 2

    assert run(disk, SCORED)[0] == 0 and run(disk, EXPORTED)[0] == 0
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    full = fill(disk)
    assert_told(run(disk, SCORED), "No space left")
    assert_told(run(disk, EXPORTED), "cannot be written")
    figure = [*FOUND, "--figure", "found.png"]
    assert_told(run(disk, figure), "cannot be kept", "No space left")
    full.unlink()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_folders_that_vanish(workplace):
    state = workplace / "runs/run" / STATE
    training = when(state.exists, workplace, ["train", *LONG])
    shutil.rmtree(workplace / "images")
    shutil.rmtree(workplace / "data")
    epochs = len(history(workplace))
    while len(history(workplace)) < epochs + 2:  # pixels come from the cache that it has open
        assert not training.done()
    (workplace / "runs").rename(workplace / "away")
    assert_told(training.result(), "cannot be written: No such file or directory")
    (workplace / "away").rename(workplace / "runs")
    assert_told(run(workplace, ["train", "runs/run"]), "data_dir does not exist")
    draw_images(workplace)
    assert_told(run(workplace, SCORED), "is not finished")


# Two at once


def make_runs(folder, start):
    time.sleep(max(0, start - time.time()))
    config = Config(runs_dir=str(folder))
    return [RunDirectory.create(config, "x").path.name for _ in range(3)]


def test_many_runs_of_one_second_get_a_directory_each(tmp_path):
    """From eight processes at the same moment, killed ones beside them."""
    (tmp_path / ".partial-1-killed").mkdir()
    with PROCESSES.Pool(8) as pool:
        made = sum(pool.starmap(make_runs, [(tmp_path, time.time() + 3)] * 8, 1), [])
    assert len(set(made)) == 24 and all(RunDirectory(tmp_path / name).config for name in made)
    assert {path.name for path in tmp_path.iterdir()} == {".partial-1-killed", *made}


def test_a_name_that_is_taken_is_not_overwritten(tmp_path):
    config = Config(runs_dir=str(tmp_path), run_name="one")
    (tmp_path / "one").mkdir()  # empty, as a killed run of an older version left it
    before = RunDirectory.create(config, "x").path / "config.json"
    text = before.read_text()
    with pytest.raises(RunError, match="exists already"):
        RunDirectory.create(dataclasses.replace(config, seed=1), "x")
    assert before.read_text() == text and [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_run_does_not_go_on_with_other_images(workplace, prepare):
    """Held-out images would be trained on."""
    run = RunDirectory.create(Config(runs_dir=str(workplace)), "x")
    for _ in range(2):
        data = prepare(workplace / "images")
        run.write_splits(data.index, data.splits)
    before = run.read_json("splits.json")
    shutil.copy(workplace / "images/class1/1.png", workplace / "images/class1/new.png")
    data = prepare(workplace / "images")
    with pytest.raises(RunError, match="are not those that .* began with"):
        run.write_splits(data.index, data.splits)
    assert run.read_json("splits.json") == before
