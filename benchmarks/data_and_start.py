"""Decoding, warm starts, augmentation's share of a step, and start-up.

python benchmarks/data_and_start.py [--images 2000] [--warm 10000] [--seconds 5] [--repeats 5]

Draws its own JPEGs, so they have just been written and the disk does not count. One core and two,
draft mode and Pillow without it take turns.
"""

import dataclasses
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from PIL import Image

from configs import Config

FOLDERS = {"images": 256, "warm": 32, "photographs": 1024}  # name -> pixels of a JPEG's side
COMMANDS = {
    "a config printed": "configs.py plantvillage-recipe",
    "a wrong path told": "train.py plantvillage-recipe --data_dir nowhere",
    "a wrong field told": "train.py plantvillage-recipe --val_share 0",
}
UNITS = {
    "decoding, one core": "images/s, 256 to 112 pixels",
    "decoding, two cores": "images/s, the same",
    "two cores by one": "times as fast",
    "draft mode": "images/s, one core, 1024 to 112 pixels",
    "plain": "images/s, the same without draft mode",
    "draft mode by plain": "times as fast",
    "warm start": "s to load images decoded before",
    "first step": "s from the command to its end, images decoded before",
    "augmentation": "% of the time of a step, on one core",
}


def main():
    """Runs the command line."""
    options = common.options(__doc__, images=2000, warm=10_000, seconds=5.0, repeats=5)
    with tempfile.TemporaryDirectory() as place:
        for name, count in (
            ("images", options.images),
            ("warm", options.warm),
            ("photographs", 40),
        ):
            draw(Path(place, name), count, FOLDERS[name])

        def measure(name, number):
            if name in COMMANDS:
                answer = command_seconds(COMMANDS[name])
            else:
                job = {"name": name, "place": place, "seconds": options.seconds}
                cores = [min(os.sched_getaffinity(0))] if name.endswith("one core") else None
                answer = common.ask("data_and_start.py", job | {"begin": time.time()}, cores=cores)
                answer = answer and answer["value"]
            print(f"{name}: {answer}", flush=True)
            return answer

        for name in ("warm start", "first step"):
            measure(name, None)  # warms up
        found = common.in_turn([*WORK, *COMMANDS], options.repeats, measure)
    for fast, slow in (("decoding, two cores", "decoding, one core"), ("draft mode", "plain")):
        ratios = [a / b for a, b in zip(found[fast], found[slow], strict=True)]
        found["two cores by one" if "two" in fast else "draft mode by plain"] = ratios
    rows = [[name, common.middle(found[name], 2), UNITS.get(name, "s")] for name in sorted(found)]
    common.table(["what", "median [range]", ""], rows)
    common.save("data_and_start", options=vars(options), found=found)


def draw(folder, count, side):
    """JPEGs of smooth noise in 20 classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        path = folder / f"class{number % 20}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def command_seconds(words):
    """How long one of the project's commands takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words.split()], cwd=common.PROJECT, capture_output=True)
    return time.perf_counter() - begin


def config_for(job, folder):
    """The defaults (`compact`, 112 pixels) on batches of classes of the drawn images."""
    folders = {"data_dir": f"{job['place']}/{folder}", "cache_dir": f"{job['place']}/cache"}
    return Config(sampling="classes", **folders)


def decoding(job):
    """Images decoded per second, into an empty cache."""
    from pipeline.image_cache import open_cache
    from pipeline.image_index import read_index

    config = config_for(job, "images")
    index = read_index(config.data_dir)
    with tempfile.TemporaryDirectory() as cold:
        begin = time.perf_counter()
        open_cache(index, dataclasses.replace(config, cache_dir=cold))
        return len(index) / (time.perf_counter() - begin)


def photographs(job):
    """Large JPEGs decoded per second, as the cache does it or as most loaders do."""
    from pipeline.reading import decode

    def plain(data):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((112, 112)))

    files = [path.read_bytes() for path in Path(job["place"], "photographs").rglob("*.jpg")]
    read = plain if job["name"] == "plain" else lambda data: decode(data, Config())
    read(files[0])
    begin = time.perf_counter()
    for data in files:
        read(data)
    return len(files) / (time.perf_counter() - begin)


def warm_start(job):
    """Seconds to index, open and split what was decoded before."""
    from prepare_data import load_data

    begin = time.perf_counter()
    load_data(dataclasses.replace(config_for(job, "warm"), image_size=32))
    return time.perf_counter() - begin


def first_step(job):
    """Seconds from the start of `train.py` to the end of its first step."""
    import train
    from training import callbacks

    seconds = []

    def leave(recorder, batch, logs=None):
        seconds.append(time.time() - job["begin"])
        raise callbacks.Interrupted

    callbacks.Recorder.on_train_batch_end = leave
    train.main(arguments(job))
    return seconds[0]


def arguments(job):
    """Of `train.py`."""
    place = job["place"]
    words = f"leaves --sampling classes --image_size 112 --data_dir {place}/images"
    words += f" --cache_dir {place}/cache --runs_dir {place}/runs --run_name {job['begin']}"
    return words.split()


def augmentation(job):
    """One core's time to make the views of a batch, in percent of a training step."""
    from steps import keras_steps

    from pipeline.augmentation import augment

    config = config_for(job, "images")
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (128, 112, 112, 3), np.uint8), np.arange(128) // 8
    step = 128 / keras_steps({"seconds": job["seconds"], "batch": 128}, config, [batch])["rate"]
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        augment(batch[0], config, rng)
        times.append(time.perf_counter() - begin)
    return 100 * float(np.median(times)) / step


WORK = {
    "decoding, one core": decoding,
    "decoding, two cores": decoding,
    "draft mode": photographs,
    "plain": photographs,
    "warm start": warm_start,
    "first step": first_step,
    "augmentation": augmentation,
}

if __name__ == "__main__":
    if "--worker" in sys.argv:
        common.work(lambda job: {"value": WORK[job["name"]](job)})
    main()
