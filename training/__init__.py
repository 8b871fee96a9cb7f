"""From a config and a data set to a trained encoder, around Keras's `fit`.

In: a `Config`, a data set, a run directory. Out: the fitted encoder and model, the history, the
resume state. Open `fit.py` first; `train.py` is the door.
"""
