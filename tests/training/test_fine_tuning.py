"""An upper half is trained on maps and on what the pretrained network said of each image."""

import keras
import numpy as np
import pytest

from configs import Config
from networks.losses import relational_distillation, supervised_contrastive_loss
from training.fit import compile_model


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_loss_on_maps_is_that_of_classes_and_of_the_teacher(weight):
    settings = {"sampling": "classes", "encoder": "efficientnet_lite0", "weights": "imagenet"}
    config = Config(**settings, distillation=weight, optimizer="sgd", schedule="constant")
    maps = keras.Input((4,), name="maps")
    model = keras.Model(maps, keras.layers.UnitNormalization()(keras.layers.Dense(3)(maps)))
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(8, 4)).astype("float32"), np.repeat(np.arange(4.0), 2)
    teacher = rng.normal(size=(8, 3)).astype("float32")
    embeddings = model.predict(inputs, verbose=0)
    expected = supervised_contrastive_loss(labels, embeddings, config.temperature)
    expected += weight * relational_distillation(teacher, embeddings)
    compile_model(model, model, config)
    targets = np.concatenate([labels[:, None], teacher], axis=1).astype("float32")
    assert model.train_on_batch(inputs, targets)[0] == pytest.approx(float(expected), rel=1e-4)
