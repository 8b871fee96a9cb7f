"""How seconds and memory grow with images, classes and image size, with fitted exponents.

python benchmarks/growth.py [--most 1000000] [--seconds 20] [--minutes 30]

Images of 64 x 64 in colour are written to disk as a decoded cache (12 GB for a million), then split
and trained on. Memory is what is the process's own: pages of the memory map are the system's, which
drops them when it needs room. Points that would begin after `--minutes` are left out. The plot is
growth.png; docs/growth.png is one of a full run.
"""

import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

from configs import Config
from pipeline.image_cache import DECODED, PART_BYTES
from pipeline.row_store import RowStore, StoredRows

BATCH, WARM_UP = 128, 12  # images, steps
IMAGES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASSES = (20, 100, 500, 2_500, 10_000)
SIZES = (32, 48, 64, 96, 128, 192)
COSTS = {  # what is measured -> what it is called
    "prepare": "seconds to open, split and sort",
    "step": "milliseconds a step",
    "own": "own memory, MB",
}


def main():
    """Runs the command line."""
    options = common.options(__doc__, most=1_000_000, seconds=20.0, minutes=30.0)
    begin, most = time.monotonic(), options.most
    series = {
        "images": [(n, max(10, n // 100), 64) for n in IMAGES if n <= most],
        "classes": [(min(30_000, most), n, 64) for n in CLASSES if 3 * n <= min(30_000, most)],
        "image size": [(min(10_000, most), 100, n) for n in SIZES],
    }
    found, exponents = {}, []
    for name, points in series.items():
        found[name] = []
        for images, classes, size in points:
            if time.monotonic() - begin > 60 * options.minutes:
                print(f"{name}: {images} images, {classes} classes of {size} pixels: no time left")
                continue
            answer = measure(images, classes, size, options.seconds)
            if answer:
                x = {"images": images, "classes": classes, "image size": size}[name]
                found[name].append({"x": x, **answer})
                print(name, x, {key: round(answer[key], 3) for key in answer}, flush=True)
        exponents += [[name, label, exponent(found[name], key)] for key, label in COSTS.items()]
    common.table(["against", "cost", "exponent"], exponents)
    steady = found["images"][-1]
    print(f"\n{steady['x']:,} images: {steady['first']:,.0f} images/s in the first third, "
          f"{steady['last']:,.0f} in the last; {steady['own']:,.0f} MB of its own.")  # fmt: skip
    plot(found)
    common.save("growth", options=vars(options), found=found, exponents=exponents)


def measure(images, classes, size, seconds):
    """One point: writes the images, has a process of its own train on them, and removes them."""
    with tempfile.TemporaryDirectory(dir=common.HERE) as place:
        needed, free = images * size * size * 3, shutil.disk_usage(place).free
        if needed > free:
            print(f"{images} images of {size} pixels need {needed / 1e9:.0f} GB of disk.")
            return None
        rng = np.random.default_rng(0)
        store = RowStore(place, (size, size, 3), row=DECODED)
        noise = rng.integers(256, size=(PART_BYTES // size**2 // 3, size, size, 3), dtype=np.uint8)
        stamps = np.arange(1, images + 1)
        for start in range(0, images, len(noise)):
            rows = np.zeros(min(len(noise), images - start), DECODED)
            rows["stamp"] = rows["digest"] = stamps[start : start + len(rows)]
            store.append(noise[: len(rows)], rows)
        for path in Path(place).iterdir():  # so that the training reads them from the disk
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        names = ("images", "classes", "size", "path", "seconds")
        values = (images, classes, size, place, seconds)
        job = {"name": f"{images}", **dict(zip(names, values, strict=True))}
        return common.ask("growth.py", job)


def train(job):
    """In a worker: what `COSTS` names, and images/s in the first and the last third."""
    import keras

    from pipeline.class_batches import ClassBatches
    from pipeline.image_index import ImageIndex
    from pipeline.splits import make_splits
    from training.fit import build_training_model, compile_model

    config = Config(sampling="classes", image_size=job["size"])
    rows, families = np.arange(job["images"]), np.zeros(job["classes"], int)
    names = np.array([f"{row}.jpg" for row in rows], np.dtypes.StringDType())
    labels, class_names = rows % job["classes"], [f"class{n}" for n in range(job["classes"])]
    none = np.zeros(len(rows), bool)
    index = ImageIndex(Path("."), names, rows, labels, class_names, families, [""], rows, none)
    begin = time.perf_counter()
    store = RowStore(job["path"], (job["size"], job["size"], 3), row=DECODED)
    pixels = StoredRows(store, store.find(rows.astype(np.uint64) + 1))
    splits = make_splits(index, store.table["digest"], {}, config)
    batches = ClassBatches(index, pixels, splits.train, config)
    prepare = time.perf_counter() - begin
    encoder, model = build_training_model(config)
    compile_model(model, config)
    times, own = [], []

    def look(batch, logs):
        times.append(time.perf_counter())
        own.append(own_megabytes())

    def fit(first, last):
        # As many batches as steps: one still being made when the process ends would hang it.
        steps = (batches[step] for step in range(first, last))
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
        count = last - first
        model.fit(steps, steps_per_epoch=count, callbacks=[callback], shuffle=False, verbose=0)

    fit(0, WARM_UP)
    fit(WARM_UP, WARM_UP + max(12, int(job["seconds"] / np.median(np.diff(times[5:])))))
    apart = np.diff(times[WARM_UP:])
    third = len(apart) // 3
    return {
        "prepare": prepare,
        "step": 1000 * statistics.median(apart),
        "own": max(own),
        "first": BATCH / apart[:third].mean(),
        "last": BATCH / apart[-third:].mean(),
    }


def own_megabytes():
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def exponent(points, key):
    """Slope of the cost over x, both as logarithms; what a constant part hides is not fitted."""
    if len(points) < 2:
        return math.nan
    x, y = (np.log([point[name] for point in points]) for name in ("x", key))
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def plot(found):
    """A row of pictures a cost, a column a cause."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(COSTS), len(found), figsize=(10, 8), sharex="col", sharey="row")
    for column, (name, points) in zip(axes.T, found.items(), strict=True):
        for axis, (key, label) in zip(column, COSTS.items(), strict=True):
            axis.loglog([p["x"] for p in points], [p[key] for p in points], "o-")
            axis.set_title(f"exponent {exponent(points, key)}", fontsize=9)
            axis.grid(alpha=0.3)
            if axis in axes[:, 0]:
                axis.set_ylabel(label)
        column[-1].set_xlabel(name)
        column[-1].set_xticks(
            [p["x"] for p in points], [f"{p['x']:,}" for p in points], rotation=60
        )
        column[-1].xaxis.minorticks_off()
    figure.tight_layout()
    figure.savefig(common.HERE / "growth.png", dpi=110)


if __name__ == "__main__":
    common.work(train) if "--worker" in sys.argv else main()
