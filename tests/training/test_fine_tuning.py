"""An upper half is trained on maps and on what the pretrained network said of each image."""

import keras
import numpy as np
import pytest

from configs import Config
from networks.losses import relational_distillation, supervised_contrastive_loss
from training.fine_tuning import Distillation
from training.fit import compile_model


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_loss_on_maps_is_that_of_classes_and_of_the_teacher(weight):
    config = Config(sampling="classes", optimizer="sgd", learning_rate=0.1)
    maps, teacher = keras.Input((4,)), keras.Input((3,))
    embeddings = keras.layers.UnitNormalization()(keras.layers.Dense(3)(maps))
    encoder = keras.Model(maps, embeddings)
    model = keras.Model([maps, teacher], Distillation(weight)(embeddings, teacher))
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(8, 4)).astype("float32"), np.repeat(np.arange(4), 2)
    known = rng.normal(size=(8, 3)).astype("float32")
    compile_model(model, config)
    for _ in range(2):
        before = encoder.predict(inputs, verbose=0)
        expected = supervised_contrastive_loss(labels, before, config.temperature)
        expected += weight * relational_distillation(known, before)
        found = model.train_on_batch([inputs, known], labels)[0]
        model.reset_metrics()
        assert found == pytest.approx(float(expected), rel=1e-4)
