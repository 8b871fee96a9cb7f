"""The drawn signatures: the same every time, laid out as promised, no shortcut to a forgery."""

import draw_signatures
import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score


def test_layout_and_the_same_bytes_every_time(tmp_path):
    for name in ("first", "again"):
        draw_signatures.draw_signatures(tmp_path / name, writers=2, genuine=3, forgeries=2)
    files = sorted(path.relative_to(tmp_path / "first") for path in tmp_path.glob("first/*/*"))
    names = [f"{writer}{kind}" for writer in ("000", "001") for kind in ("", "_forg")]
    assert sorted({path.parent.name for path in files}) == names and len(files) == 10
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "again" / path).read_bytes()
        with Image.open(tmp_path / "first" / path) as image:
            assert (image.mode, image.size) == ("L", (400, 240))


def test_single_numbers_of_a_picture_do_not_tell_a_forgery():
    images, forged = [], []
    for writer in range(20):
        for path, image in draw_signatures.draw_images(writer, 0, genuine=6, forgeries=6):
            images.append(image)
            forged.append("_forg/" in path)
    for number in (np.median, np.mean, lambda image: np.quantile(image, 0.001)):
        auc = roc_auc_score(forged, [number(image) for image in images])
        assert 0.4 < auc < 0.6
