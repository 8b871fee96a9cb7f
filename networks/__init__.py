"""From raw pixels to an embedding: the encoders, the losses of batches, whitening.

In: uint8 pixels (batch, height, width, channels). Out: embeddings (batch, embedding_dim). Knows
no files of a data set. Open `encoders.py` first; `siamese_network_funcs.py` is the door.
"""
