"""Peer (c): our compact encoder in PyTorch with pytorch-metric-learning, all pairs of a batch."""

import concurrent.futures
import ctypes
import sys
import time

import numpy as np
from PIL import Image


def train(files, labels, seconds, watch, seed=0, bfloat16=False):
    """Trains on images decoded once, on all cores. Takes what `published.train` takes.

    Raises:
        ImportError: Without torch and pytorch-metric-learning.
    """
    step, embed = build_trainer(bfloat16, seed=seed)
    begin, rng, labels = time.perf_counter(), np.random.default_rng(seed), np.asarray(labels)
    pixels = read_all(files)
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    number = 0
    while time.perf_counter() - begin < seconds:
        classes = rng.permutation(len(by_class))[:16]
        rows = np.concatenate([rng.choice(by_class[c], 8, replace=False) for c in classes])
        step(pixels[rows], labels[rows])
        number += 1
        if number % 10 == 0:
            watch(time.perf_counter() - begin, lambda paths: embed(read_all(paths)))


def keep_freed_memory():
    """Has glibc keep what is freed: PyTorch is up to half faster, TensorFlow does so by itself."""
    if sys.platform == "linux":
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(setting, 1 << 30)


def build_trainer(bfloat16, compiled=False, seed=0):
    """Network, loss and optimizer.

    Args:
        bfloat16: Whether the network multiplies in bfloat16.
        compiled: Whether it goes through `torch.compile`.
        seed: Of the weights.

    Returns:
        `(step, embed)`: a function of images (uint8, channels last) and labels that trains on them
        and gives the loss, and one of images that gives their embeddings.
    """
    import torch
    from pytorch_metric_learning.losses import SupConLoss
    from torch import nn

    keep_freed_memory()
    torch.manual_seed(seed)
    parts, before = [], 3
    for filters in (32, 64, 128, 256):
        parts.append(nn.Conv2d(before, filters, 3, 2 if before == 3 else 1, 1, bias=False))
        parts += [nn.MaxPool2d(2)] if filters < 256 else []
        parts += [nn.BatchNorm2d(filters), nn.ReLU()]
        before = filters
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 128)]
    network = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    loss_function = SupConLoss(temperature=0.05)
    run = torch.compile(network) if compiled else network

    def forward(images, run):
        images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return run(images).float()

    def step(images, labels):
        loss = loss_function(forward(images, run), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def embed(images):
        network.eval()
        with torch.no_grad():
            vectors = forward(images, network).numpy()
        network.train()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return step, embed


def read_all(paths, size=112):
    """Images of files, uint8 array (images, size, size, 3)."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.stack([*pool.map(lambda path: read(path, size), paths)])


def read(path, size):
    """One image in colour."""
    return np.asarray(Image.open(path).convert("RGB").resize((size, size)), np.uint8)
