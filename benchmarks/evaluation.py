"""Few-shot trials after embedding, and embedding against training.

python benchmarks/evaluation.py [--seconds 5] [--repeats 5] [--config triplet]
"""

import sys
import time

import common
import numpy as np

from configs import CONFIGS
from evaluation import few_shot

IMAGES, CLASSES = 2000, 100
TRIALS, WAYS = 10_000, 20


def main():
    """Runs the command line."""
    options = common.options(__doc__, seconds=5.0, repeats=5, config="triplet")

    def measure(name, number):
        answer = common.ask("evaluation.py", vars(options) | {"name": name})
        print(name, answer, flush=True)
        return answer

    answers = common.in_turn(["evaluation"], options.repeats, measure)["evaluation"]
    names = [name for name in answers[0] if name != "megabytes"]
    rows = [[name, common.middle([a[name] for a in answers], 2)] for name in names]
    common.table(["what", "median [range]"], rows)
    common.save("evaluation", options=vars(options), found=answers)


def evaluate(job):
    """In a worker: seconds of the trials, images/s of embedding and training."""
    from steps import keras_steps

    from networks.embedding import embed
    from siamese_network_funcs import build_encoder
    from training.fit import build_training_model

    config = CONFIGS[job["config"]]
    rng = np.random.default_rng(0)
    shape = (config.image_size, config.image_size, config.channels)
    pixels = rng.integers(0, 256, (IMAGES, *shape), np.uint8)
    batch = config.classes_per_batch * config.images_per_class
    labels = np.arange(batch) // config.images_per_class
    batches = [(pixels[start : start + batch], labels) for start in range(0, 4 * batch, batch)]
    train = keras_steps({"seconds": job["seconds"], "batch": batch}, config, batches)["rate"]
    encoders = {"run": build_encoder(config), "validation": build_training_model(config)[0]}
    rates = {name: embedding_rate(e, pixels, job["seconds"]) for name, e in encoders.items()}
    embeddings = embed(encoders["run"], pixels, np.arange(IMAGES))
    return {
        f"s for {TRIALS:,} {WAYS}-way one-shot trials": trial_seconds(embeddings),
        "training, images/s": train,
        "embedding, a finished run's encoder, images/s": rates["run"],
        "times as fast as training": rates["run"] / train,
        "embedding, while training, images/s": rates["validation"],
        "times as fast as training, while training": rates["validation"] / train,
    }


def embedding_rate(encoder, pixels, seconds):
    """Images embedded per second."""
    from networks.embedding import embed

    rows, done = np.arange(len(pixels)), 0
    embed(encoder, pixels, rows)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        embed(encoder, pixels, rows)
        done += len(rows)
    return done / (time.perf_counter() - begin)


def trial_seconds(embeddings):
    """To draw the trials, compare, and score."""
    labels, rng = np.arange(IMAGES) % CLASSES, np.random.default_rng(0)
    begin = time.perf_counter()
    trials = few_shot.draw_trials(labels, WAYS, 1, TRIALS, rng)
    few_shot.few_shot_accuracy(few_shot.trial_distances(embeddings, trials), trials.answers)
    return time.perf_counter() - begin


if __name__ == "__main__":
    common.work(evaluate) if "--worker" in sys.argv else main()
