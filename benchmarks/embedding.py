"""Images/s of EfficientNet-Lite0 with its ImageNet weights: Keras as it is used here, and others.

python benchmarks/embedding.py [--seconds 3] [--repeats 5]      pip install openvino torch for all
"""

import functools
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
    from networks.pretrained import fold_batch_norm, read_weights

    model = classifier(size)
    model(np.zeros((1, size, size, 3)))
    model.export(path, format="onnx", verbose=False)
    weights = fold_batch_norm(read_weights())
    np.savez(
        path.with_suffix(".npz"),
        **{f"{name} {i}": weights[name][i] for name in weights for i in (0, 1)},
    )


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
    from torch.nn.functional import conv2d, pad, relu6

    from networks.pretrained import STAGES

    weights = {name: torch.from_numpy(a) for name, a in np.load(path.with_suffix(".npz")).items()}
    for name, kernel in weights.items():
        if kernel.ndim == 4:  # from Keras's layout
            kernel = kernel.permute((2, 3, 0, 1) if "_depthwise" in name else (3, 2, 0, 1))
            weights[name] = kernel.contiguous(memory_format=torch.channels_last)

    def convolve(maps, name, stride=1):
        kernel, bias = weights[f"{name} 0"], weights[f"{name} 1"]
        size = kernel.shape[-1] - stride  # padding in all, "same" as in Keras
        if size % 2:
            maps = pad(maps, (size // 2, size // 2 + 1) * 2)
        groups = len(bias) if "_depthwise" in name else 1
        return conv2d(maps, kernel, bias, stride, 0 if size % 2 else size // 2, groups=groups)

    clipped = functools.partial(relu6, inplace=True)

    @torch.inference_mode()
    def run(batch):
        pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2) - 127) / 128
        maps, number = clipped(convolve(pixels, "_conv_stem", 2)), 0
        for _, stride, expansion, _, blocks in STAGES:
            for block in range(blocks):
                given, name = maps, f"_blocks.{number}."
                maps = clipped(convolve(maps, f"{name}_expand_conv")) if expansion > 1 else maps
                maps = clipped(convolve(maps, f"{name}_depthwise_conv", 1 if block else stride))
                maps = convolve(maps, f"{name}_project_conv")
                maps, number = maps + given if block else maps, number + 1
        pooled = clipped(convolve(maps, "_conv_head")).mean((2, 3))
        return (pooled @ weights["_fc 0"] + weights["_fc 1"]).numpy()

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
