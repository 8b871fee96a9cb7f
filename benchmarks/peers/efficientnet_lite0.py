"""Peers from ImageNet: EfficientNet-Lite0 in PyTorch, frozen or fine-tuned, channels last.

The weights are those that the package uses, batch normalisation folded in as there: the file that
`common.save_weights` writes. A learner is a function of the training images, as `frozen` is.
"""

import functools
import time

import numpy as np
import torch
from peers.metric_learning import keep_freed_memory, read_all
from torch.nn.functional import conv2d, normalize, pad, relu6

LOWER = ((1, 1), (2, 2), (2, 2), (2, 3))  # stride and blocks of each stage
UPPER = ((1, 3), (2, 4), (1, 1))
SIZE, BATCH = 224, 64  # pixels; images embedded at once
CLASSES, IMAGES, EMBEDDING_DIM = 16, 6, 256  # of a step, as in the config `photographs`
clipped = functools.partial(relu6, inplace=True)


def frozen(files, labels, end, weights, seed):
    """Logistic regression on the features; the network stays as it is.

    Args:
        files: Paths of the training images.
        labels: Their classes, (files,).
        end: `time.time()` when training stops; this one takes what it takes.
        weights: Path of the weights.
        seed: Of what is drawn.

    Returns:
        `(known, unseen)`, functions from paths to embeddings of unit length: images of known
        classes are compared by their probabilities (logits are worse), others by their features.
    """
    from sklearn.linear_model import LogisticRegression

    tensors = load_weights(weights)

    def features(paths):
        return in_batches(lambda images: upper(tensors, lower(tensors, images)), paths)

    def unit_length(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    classifier = LogisticRegression(max_iter=1000).fit(features(files), labels)
    return (
        lambda paths: unit_length(classifier.predict_proba(features(paths))),
        lambda paths: unit_length(features(paths)),
    )


def fine_tuned(files, labels, end, weights, seed):
    """The upper stages and a head, trained with SupConLoss; arguments and result as of `frozen`."""
    from pytorch_metric_learning.losses import SupConLoss

    keep_freed_memory()
    torch.manual_seed(seed)
    rng, labels, pixels = np.random.default_rng(seed), np.asarray(labels), read_all(files, SIZE)
    by_class = [np.flatnonzero(labels == one) for one in np.unique(labels)]
    tensors, head = load_weights(weights), torch.nn.Linear(1280, EMBEDDING_DIM)
    trained = [tensor.requires_grad_() for tensor in tensors.values()]  # the lower get no gradient
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=2e-4)  # 5e-4 was worse
    loss_function = SupConLoss()

    def embed(images):
        with torch.no_grad():
            maps = lower(tensors, images)
        return normalize(head(upper(tensors, maps)))

    while time.time() < end:
        classes = rng.permutation(len(by_class))[:CLASSES]
        rows = np.concatenate([rng.choice(by_class[one], IMAGES, replace=False) for one in classes])
        mirrored = rng.random((len(rows), 1, 1, 1)) < 0.5
        images = np.where(mirrored, pixels[rows][:, :, ::-1], pixels[rows])
        loss = loss_function(embed(images), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (lambda paths: in_batches(embed, paths),) * 2


def load_weights(path):
    """Name -> tensor, kernels as PyTorch has them."""
    tensors = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    for name, kernel in tensors.items():
        if kernel.ndim == 4:  # from Keras's layout
            kernel = kernel.permute((2, 3, 0, 1) if "_depthwise" in name else (3, 2, 0, 1))
            tensors[name] = kernel.contiguous(memory_format=torch.channels_last)
    return tensors


def lower(tensors, images):
    """Maps of the stem and the first four stages; images are an array, channels last, 0 to 255."""
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    return stages(tensors, clipped(convolve(tensors, pixels, "_conv_stem", 2)), LOWER, 0)


def upper(tensors, maps):
    """The last maps pooled, (batch, 1280)."""
    maps = stages(tensors, maps, UPPER, sum(blocks for _, blocks in LOWER))
    return clipped(convolve(tensors, maps, "_conv_head")).mean((2, 3))


def stages(tensors, maps, of, number):
    """Inverted bottlenecks, numbered from `number`."""
    for stride, blocks in of:
        for block in range(blocks):
            given, name = maps, f"_blocks.{number}."
            if f"{name}_expand_conv 0" in tensors:
                maps = clipped(convolve(tensors, maps, f"{name}_expand_conv"))
            step = 1 if block else stride
            maps = clipped(convolve(tensors, maps, f"{name}_depthwise_conv", step))
            maps = convolve(tensors, maps, f"{name}_project_conv")
            maps, number = maps + given if block else maps, number + 1
    return maps


def convolve(tensors, maps, name, stride=1):
    """One convolution, padded as "same" is in Keras."""
    kernel, bias = tensors[f"{name} 0"], tensors[f"{name} 1"]
    padding = kernel.shape[-1] - stride  # in all
    if padding % 2:
        maps = pad(maps, (padding // 2, padding // 2 + 1) * 2)
    groups = len(bias) if "_depthwise" in name else 1
    return conv2d(maps, kernel, bias, stride, 0 if padding % 2 else padding // 2, groups=groups)


@torch.inference_mode()
def in_batches(embed, paths):
    """Embeddings of files, (files, d)."""
    images = read_all(paths, SIZE)
    starts = range(0, len(images), BATCH)
    return torch.cat([embed(images[start : start + BATCH]) for start in starts]).numpy()
