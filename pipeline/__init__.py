"""From a folder, zip or table of images to the batches of a training.

In: `data_dir` and the other fields of a `Config`. Out: an index of images and classes, their pixels
as one memory-mapped uint8 array, splits, and batches of pairs or classes. Knows no Keras.
Open `image_index.py` first; `prepare_data.py` is the door.
"""
