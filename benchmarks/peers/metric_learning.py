"""Peer (c): our compact encoder in PyTorch with pytorch-metric-learning, all pairs of a batch."""

import time

import numpy as np
from PIL import Image


def train(files, labels, seconds, watch, bfloat16=False):
    """Trains on images decoded once. Takes what `published.train` takes.

    Raises:
        ImportError: Without torch and pytorch-metric-learning.
    """
    import torch
    from pytorch_metric_learning.losses import SupConLoss
    from torch import nn

    begin = time.perf_counter()
    torch.manual_seed(0)
    pixels, labels = np.stack([read(path) for path in files]), np.asarray(labels)
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    parts, before = [], 3
    for filters in (32, 64, 128, 256):
        parts.append(nn.Conv2d(before, filters, 3, 2 if before == 3 else 1, 1, bias=False))
        parts += [nn.MaxPool2d(2)] if filters < 256 else []
        parts += [nn.BatchNorm2d(filters), nn.ReLU()]
        before = filters
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 128)]
    network = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    loss_function, rng = SupConLoss(temperature=0.05), np.random.default_rng(0)

    def forward(batch):
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(images).float()

    def embed(paths):
        network.eval()
        with torch.no_grad():
            vectors = forward(np.stack([read(path) for path in paths])).numpy()
        network.train()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    step = 0
    while time.perf_counter() - begin < seconds:
        classes = rng.permutation(len(by_class))[:16]
        rows = np.concatenate([rng.choice(by_class[c], 8, replace=False) for c in classes])
        loss = loss_function(forward(pixels[rows]), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 40 == 0:
            watch(time.perf_counter() - begin, embed)


def read(path):
    """One image in colour."""
    return np.asarray(Image.open(path).convert("RGB").resize((112, 112)), np.uint8)
