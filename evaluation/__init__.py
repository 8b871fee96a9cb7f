"""From embeddings to numbers one can publish, figures and a report.

In: arrays of embeddings, labels and distances of held-out images. Out: metrics, thresholds,
figures, `report.html`. Open `verification.py` first; `evaluate.py` is the door.
"""
