"""Images/s of EfficientNet-Lite0 with its ImageNet weights: Keras as it is used here, and others.

python benchmarks/embedding.py [--seconds 3] [--repeats 5]      pip install openvino torch for all
"""

import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

SIZES, IMAGES, BATCH = (160, 224), 128, 64


def main():
    """Runs the command line."""
    options = common.options(__doc__, seconds=3.0, repeats=5)
    with tempfile.TemporaryDirectory() as folder:
        job = {"seconds": options.seconds, "folder": folder}
        common.ask("embedding.py", job | {"name": "export"})

        def measure(name, number):
            backend = "torch" if name == "PyTorch" else "tensorflow"
            answer = common.ask("embedding.py", job | {"name": name}, backend)
            print(name, answer and answer["rates"], flush=True)
            return answer

        answers = common.in_turn(RUNNERS, options.repeats, measure)
    found = {
        name: {key: np.array([one[key] for one in runs]) for key in ("rates", "work", "logits")}
        for name, runs in answers.items()
    }
    ours, rows = found["Keras"], []
    for name, one in found.items():
        cells = [name, *(common.middle(rates) for rates in one["rates"].T)]  # (sizes, repeats)
        ratios = np.median(ours["work"], 0) / np.median(one["work"], 0)
        cells += [f"{ratio:.2f}" for ratio in ratios]
        rows.append([*cells, f"{np.abs(one['logits'] - ours['logits'][0]).max():.0e}"])
    head = [f"images/s, {size} px" for size in SIZES]
    head += [f"times Keras by processor time, {size} px" for size in SIZES]
    common.table(["engine", *head, "outputs differ by"], rows)
    common.save("embedding", options=vars(options), found=answers)


def measure(job):
    """In a worker: images/s and processor seconds per image at each size, some logits of one."""
    answer = {"rates": [], "work": [], "logits": []}
    for size in SIZES:
        path, shape = Path(job["folder"], f"{size}.onnx"), (IMAGES, size, size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if job["name"] == "export":
            export(size, path)
            continue
        run = RUNNERS[job["name"]](size, path)
        answer["logits"].append(run(pixels)[0, :9].tolist())  # the warm-up too
        done, begin, spent = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < job["seconds"]:
            run(pixels)
            done += IMAGES
        answer["rates"].append(done / (time.perf_counter() - begin))
        answer["work"].append((time.process_time() - spent) / done)
    return answer


def classifier(size):
    """The Keras model that all others are copies of."""
    from networks.embedding import start_keras

    start_keras()
    from networks.pretrained import build_classifier

    return build_classifier((size, size, 3))


def export(size, path):
    """Writes it for ONNX Runtime and OpenVINO, and its weights for PyTorch."""
    model = classifier(size)
    model(np.zeros((1, size, size, 3)))
    model.export(path, format="onnx", verbose=False)
    common.save_weights(path.with_suffix(".npz"))


def keras_folded(size, path, change=lambda model: model):
    """Our network, as the package runs it."""
    from networks.embedding import embed

    model = change(classifier(size))
    return lambda pixels: embed(model, pixels, np.arange(len(pixels)))


def keras_unfolded(size, path):
    """The same with a batch normalisation after each convolution, which changes nothing."""

    def change(model):
        from keras import layers, models

        def call(layer, *given, **settings):
            maps, name = layer(*given, **settings), layer.name.replace(".", "_") + "_norm"
            if type(layer) in (layers.Conv2D, layers.DepthwiseConv2D):
                maps = layers.BatchNormalization(epsilon=1e-7, name=name)(maps)
            return maps

        slow = models.clone_model(model, call_function=call, recursive=True)
        weights = [weight for weight in slow.weights if "_norm/" not in weight.path]
        for weight, value in zip(weights, model.get_weights(), strict=True):
            weight.assign(value)
        return slow

    return keras_folded(size, path, change)


def in_batches(run):
    """A function of all pixels from one of a float32 batch."""
    starts = range(0, IMAGES, BATCH)
    return lambda pixels: np.concatenate(
        [run(pixels[start : start + BATCH].astype(np.float32)) for start in starts]
    )


def onnx_runtime(size, path):
    """The exported file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return in_batches(lambda batch: session.run(None, {"pixels": batch})[0])


def openvino(size, path):
    """The exported file in OpenVINO."""
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape([BATCH, size, size, 3])
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return in_batches(lambda batch: compiled(batch)[0])


def pytorch(size, path):
    """The same weights in PyTorch, channels last."""
    import torch
    from peers import efficientnet_lite0 as peer

    tensors = peer.load_weights(path.with_suffix(".npz"))

    @torch.inference_mode()
    def run(batch):
        features = peer.upper(tensors, peer.lower(tensors, batch))
        return (features @ tensors["_fc 0"] + tensors["_fc 1"]).numpy()

    return in_batches(run)


RUNNERS = {
    "Keras": keras_folded,
    "Keras, batch norm not folded": keras_unfolded,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "PyTorch": pytorch,
}

if __name__ == "__main__":
    common.work(measure) if "--worker" in sys.argv else main()
