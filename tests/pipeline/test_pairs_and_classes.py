"""What a batch may hold, how often, and that it depends on (seed, step) alone; random views."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from configs import Config
from pipeline.augmentation import augment
from pipeline.class_batches import ClassBatches
from pipeline.pairs import PairBatches

STILL = dict.fromkeys(["rotate", "zoom", "shift", "shear", "brightness"], 0.0)


def still(**fields):
    return Config(**STILL | {"horizontal_flip": False} | fields)


def pixels_of(index, size=8, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(len(index), size, size, channels), dtype=np.uint8)


def all_rows(index):
    return np.arange(len(index))


def draw_pairs(index, genuine, pairs=6000, **settings):
    """Rows (left, right) of one kind, many at once."""
    config = Config(pairs_per_batch=2 * pairs, **settings)
    left, right, same = PairBatches(index, None, all_rows(index), config).rows(0)
    return left[same == genuine], right[same == genuine]


@pytest.fixture
def untidy(build_index):
    """Seven classes of three families, 1 to 60 images, in groups of 1 to 4, rows shuffled."""
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat(np.arange(7), [60, 1, 2, 9, 4, 30, 3]))
    groups = labels * 1000 + rng.integers(1 + np.bincount(labels)[labels] // 2)
    return build_index(labels, groups=groups, families=[0, 0, 1, 1, 1, 2, 2])


def test_genuine_pairs(untidy):
    left, right = draw_pairs(untidy, True)
    assert (left != right).all()
    assert (untidy.labels[left] == untidy.labels[right]).all()
    for label in range(7):
        if len(set(untidy.groups[untidy.labels == label])) > 1:
            chosen = untidy.labels[left] == label
            assert (untidy.groups[left[chosen]] != untidy.groups[right[chosen]]).all()
    counts = np.bincount(untidy.labels[left], minlength=7)
    assert counts[1] == 0  # of one image there is no pair
    assert np.abs(np.delete(counts, 1) - 1000).max() < 150  # five standard deviations
    for label in (0, 2):  # every image has its turn, on either side
        members = set(np.flatnonzero(untidy.labels == label).tolist())
        assert set(left[untidy.labels[left] == label].tolist()) == members
        assert set(right[untidy.labels[left] == label].tolist()) == members


def test_impostors_are_uniform_over_class_pairs(build_index):
    index = build_index(np.repeat(np.arange(4), [5000, 50, 2, 1]))
    left, right = draw_pairs(index, False)
    pairs = Counter(zip(index.labels[left].tolist(), index.labels[right].tolist(), strict=True))
    assert set(pairs) == {(one, other) for one in range(4) for other in range(4) if one != other}
    assert max(abs(count - 500) for count in pairs.values()) < 110  # five standard deviations
    assert len(set(left[index.labels[left] == 0].tolist())) > 1000  # images of a class: uniform too


def test_hard_impostors_are_neighbours(build_index):
    index = build_index(np.repeat(np.arange(4), 500))
    batches = PairBatches(index, None, all_rows(index), Config(pairs_per_batch=4000))
    assert (batches.candidates == all_rows(index)).all()
    batches.neighbours = np.array([[3, 501, 502], [7, 601, 602]])
    left, right, same = batches.rows(0)
    pairs = Counter(zip(left[~same].tolist(), right[~same].tolist(), strict=True))
    times = [pairs[one, other] for one, *others in batches.neighbours.tolist() for other in others]
    assert abs(sum(times) - 1000) < 120 and min(times) > 200  # half of 2,000
    assert (index.labels[left] == index.labels[right]).tolist() == same.tolist()
    none = PairBatches(index, None, all_rows(index), Config(hard_share=0.0))
    assert not len(none.candidates)


def test_forgeries_are_skilled_impostors_of_their_class_and_never_genuine(build_index):
    labels = np.repeat(np.arange(3), 8)
    index = build_index(labels, forged=np.arange(24) % 8 >= 5)
    config = Config(pairs_per_batch=4000, skilled_share=0.25)
    left, right, same = PairBatches(index, None, all_rows(index), config).rows(0)
    assert not index.forged[left].any() and not index.forged[right[same]].any()
    skilled = index.forged[right]
    assert skilled[~same].mean() == 0.25
    assert (labels[left[skilled]] == labels[right[skilled]]).all()
    assert set(labels[left[skilled]]) == {0, 1, 2}
    images, own = ClassBatches(index, pixels_of(index), all_rows(index), config)[0]
    rows = ClassBatches(index, None, all_rows(index), config).rows(0)
    assert (np.bincount(own)[own[index.forged[rows]]] == 1).all()


def test_pair_batches_of_some_rows(untidy):
    pixels, some = pixels_of(untidy), all_rows(untidy)[::2]
    batches = PairBatches(untidy, pixels, some, still(pairs_per_batch=10))
    for step in range(50):
        left, right, same = batches.rows(step)
        assert np.isin([left, right], some).all()
        images, labels = batches[step]
        np.testing.assert_array_equal(images, pixels[np.stack([left, right])])
        np.testing.assert_array_equal(labels[:, 0], untidy.labels[left] == untidy.labels[right])
        assert same.sum() == 5 and labels.shape == (10, 1) and batches.images_per_step == 20
        assert images[0].dtype == np.uint8 and labels.dtype == np.float32


@pytest.mark.parametrize(("num_classes", "per_class"), [(3, 4), (7, 2), (16, 8)])
def test_class_batches(num_classes, per_class, untidy):
    pixels = pixels_of(untidy)
    config = still(classes_per_batch=num_classes, images_per_class=per_class)
    batches = ClassBatches(untidy, pixels, all_rows(untidy), config)
    available = np.minimum(np.bincount(untidy.labels), per_class).sum()
    expected = min(num_classes * per_class, available)
    assert batches.images_per_step == expected
    seen = set()
    for step in range(200):
        rows = batches.rows(step)
        assert len(rows) == len(set(rows.tolist())) == expected
        classes, counts = np.unique(untidy.labels[rows], return_counts=True)
        assert counts.max() <= per_class and len(classes) >= min(num_classes, 7)
        smallest = np.minimum(per_class, np.bincount(untidy.labels)[classes])
        assert (counts < smallest).sum() <= 1  # only the last class may have been cut
        for label in classes:  # no leaf twice while another has not been shown
            groups = untidy.groups[rows[untidy.labels[rows] == label]]
            all_groups = set(untidy.groups[untidy.labels == label].tolist())
            assert len(set(groups.tolist())) == min(len(groups), len(all_groups))
        seen |= set(rows.tolist())
    assert seen == set(range(len(untidy)))
    images, labels = batches[0]
    np.testing.assert_array_equal(images, pixels[batches.rows(0)])
    np.testing.assert_array_equal(labels, untidy.labels[batches.rows(0)])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_class_batches_of_one_family(share, build_index):
    index = build_index(np.repeat(np.arange(16), 6), families=np.repeat(np.arange(4), 4))
    config = Config(classes_per_batch=4, images_per_class=4, family_batches=share)
    batches = ClassBatches(index, None, all_rows(index), config)
    met = [len(set(index.families[batches.rows(step)])) == 1 for step in range(400)]
    assert np.mean(met) == pytest.approx(share, abs=0.12)  # by chance: 4 of 1820 choices


def fixed_random(heads=False):
    """Stands in for a generator: always the upper end, and heads or tails as told."""
    return SimpleNamespace(
        uniform=lambda low, high, size: np.full(size, high),
        random=lambda size: np.full(size, 0.0 if heads else 0.99),
    )


@pytest.mark.parametrize("shape", [(9, 9, 1), (16, 12, 3)])
def test_views_are_new_and_the_images_stay(shape, rng):
    images = rng.integers(256, size=(5, *shape), dtype=np.uint8)
    images.flags.writeable = False  # as a memory-mapped cache is
    assert not np.shares_memory(augment(images, still(), np.random.default_rng(1)), images)
    views, again, other = (augment(images, Config(), np.random.default_rng(n)) for n in (1, 1, 2))
    assert views.shape == images.shape and views.dtype == np.uint8
    assert all((view != image).any() for view, image in zip(views, images, strict=True))
    assert (again == views).all() and (other != views).any()


@pytest.mark.parametrize("field", sorted(STILL))
def test_each_image_gets_its_own_view(field, rng):
    image = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
    config = still(**{field: 30.0 if field == "rotate" else 0.5})
    assert len({view.tobytes() for view in augment(np.stack([image] * 6), config, rng)}) == 6


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror_and_turns_agree_with_numpy(channels, rng):
    images = rng.integers(256, size=(2, 9, 9, channels), dtype=np.uint8)

    def view(heads=False, **fields):
        return augment(images, still(**fields), fixed_random(heads))

    np.testing.assert_array_equal(view(heads=True, horizontal_flip=True), images[:, :, ::-1])
    np.testing.assert_array_equal(view(heads=False, horizontal_flip=True), images)
    np.testing.assert_array_equal(view(heads=True, horizontal_flip=False), images)
    quarter = np.rot90(images, axes=(2, 1))  # clockwise, as y points down
    np.testing.assert_array_equal(view(rotate=90.0), quarter)
    np.testing.assert_array_equal(view(rotate=180.0), images[:, ::-1, ::-1])
    moved = view(shift=2 / 9)
    np.testing.assert_array_equal(moved[:, 2:, 2:], images[:, :-2, :-2])
    images[:], images[:, 4, 4] = 100, 200
    assert view(zoom=0.9)[0, 4, 4, 0] == 200  # the middle stays
    assert view(zoom=0.9)[0, 4, 3, 0] == pytest.approx(100 + 100 * (1 - 1 / 1.9), abs=2)
    np.testing.assert_array_equal(np.unique(view(brightness=0.2)), [120, 240])
    np.testing.assert_array_equal(np.unique(view(brightness=0.5)), [150, 255])


def test_turned_and_mirrored_classes_count_as_new(build_index):
    index = build_index(np.repeat(np.arange(6), 4), families=[0, 0, 0, 1, 1, 1])
    pixels = pixels_of(index, channels=1)
    config = still(rotated_classes=True, classes_per_batch=6, images_per_class=4, image_size=8)
    batches, seen = ClassBatches(index, pixels, np.arange(24), config), set()
    for step in range(30):
        images, labels = batches[step]
        rows = batches.rows(step)
        turns = labels // 6
        assert np.array_equal(labels % 6, index.labels[rows])
        for family in (0, 1):
            assert len(set(turns[index.families[rows] == family])) == 1
        for image, row, number in zip(images, rows, turns, strict=True):
            known = pixels[row] if number < 4 else np.fliplr(pixels[row])
            np.testing.assert_array_equal(image, np.rot90(known, number % 4))
        seen |= set(turns.tolist())
    assert seen == set(range(8))


def test_plain_ground_goes_on_beyond_the_border_and_pictures_are_reflected():
    drawing = np.full((1, 9, 9, 1), 200, np.uint8)
    drawing[0, 4, 2:] = 10  # a stroke that touches the border between the corners
    config = still(shift=0.4)
    moved = augment(drawing, config, fixed_random())  # by 3.6 pixels, right and down
    assert moved[0, :3].min() == 200 and moved[0, :, :3].min() == 200
    drawing[0, 0, 0] = 0  # no plain ground any more
    assert augment(drawing, config, fixed_random())[0, :, :3].min() < 200


def test_warp_chance_is_the_share_of_images_warped(rng):
    images = rng.integers(0, 256, (400, 9, 9, 1), dtype=np.uint8)
    views = augment(images, still(rotate=90.0, affine_probability=0.25), rng)
    share = np.mean([not np.array_equal(*both) for both in zip(views, images, strict=True)])
    assert 0.18 < share < 0.32
