"""What a run is: every choice, the named configs, the command line. No Keras here.

python configs.py              lists the names
python configs.py plantvillage-recipe prints one config, trains nothing
"""

import dataclasses
import importlib.util
import json
import re
import signal
import sys
import typing
from pathlib import Path
from typing import Annotated, Literal

DRAWN_LEAVES = "data/leaves"  # the one folder that is drawn when it is missing

# A number's type names its smallest and largest allowed value.
Share = Annotated[float, 0.0, 1.0]
Part = Annotated[float, 0.0, 0.9]  # a share that leaves something
Count = Annotated[int, 1, 1_000_000]


@dataclasses.dataclass(frozen=True)
class Config:
    """Every choice of one run. Edit the file, or give `--field value` on the command line.

    A ValueError names a field that is out of its range, or two that contradict each other.
    """

    # First options
    data_dir: str = DRAWN_LEAVES  # folder, .zip or .csv; docs/data.md says which load
    epochs: Annotated[int, 0, 1_000_000] = 9  # at most; 0: pretrained weights as they are
    max_minutes: Annotated[float, 0.1, 1e6] | None = None  # for the whole command
    image_size: int | str = 112  # pixels after decoding: one number, or "HEIGHTxWIDTH"
    channels: Literal[1, 3] = 3  # 1 grey, 3 colour
    sampling: Literal["pairs", "classes"] = "pairs"  # or P classes x K images a batch
    encoder: str = "compact"  # ours, or a network of keras.applications
    weights: str | None = None  # "imagenet", a run directory or a weights file; None: from nothing
    learning_rate: Annotated[float, 1e-8, 10.0] = 2e-3  # at its highest
    unseen_share: Part = 0.25  # of the classes, kept out of training whole, for test
    run_name: str | None = None  # None: <time>-<config>
    seed: Annotated[int, 0, 2**32 - 1] = 0  # of splits, weights, batches and augmentation

    # Data
    fit: Literal["stretch", "pad"] = "stretch"  # pad keeps the shape, with the border's own colour
    ink: bool = False  # scanned drawings: ink alone, black on white, cropped to it
    max_classes: Annotated[int, 2, 1_000_000] | None = None  # at most, the first ones by name
    max_images_per_class: Annotated[int, 2, 1_000_000] | None = None  # at most, a seeded choice
    pair_label: Literal["same", "different"] | None = None  # label 1 of a list of pairs means this
    test_share: Annotated[float, 0.0, 0.79] = 0.15  # of the images of each known class, for test
    val_share: Annotated[float, 0.01, 0.8] = 0.15  # of the images (or classes) for validation
    validate_on: Literal["images", "classes"] = "images"  # new images, or classes kept out whole
    hold_out_by: Literal["class", "family"] = "class"  # what is kept out: classes, or families too
    cache_dir: str = "data/cache"  # decoded images are kept here

    # Batches
    pairs_per_batch: Annotated[int, 2, 65536] = 64  # half genuine; with sampling="pairs"
    classes_per_batch: Annotated[int, 2, 4096] = 16  # P; with sampling="classes"
    images_per_class: Annotated[int, 2, 1024] = 8  # K; with sampling="classes"
    family_batches: Share = 0.0  # of the batches of classes, drawn from few families
    hard_share: Share = 0.5  # of the impostor pairs, images near each other after the last epoch
    skilled_share: Share = 0.5  # of the impostor pairs, forgeries where there are any
    steps_per_epoch: Count = 80  # between two validations

    # Augmentation
    rotate: Annotated[float, 0.0, 180.0] = 180.0  # degrees, either way
    zoom: Part = 0.15  # share, either way
    shift: Annotated[float, 0.0, 0.5] = 0.05  # share of the side, either way
    shear: Share = 0.0  # tangent of the angle, either way
    affine_probability: Share = 1.0  # of rotation, zoom, shift and shear, each on its own
    horizontal_flip: bool = True  # half of the images, left to right
    brightness: Part = 0.15  # share by which brightness varies
    rotated_classes: bool = False  # classes turned by right angles, mirrored or not, count as new

    # Network and loss
    embedding_dim: Annotated[int, 1, 16384] = 128  # numbers that describe an image
    unit_length: bool = True  # embeddings on the unit sphere: distances lie in 0..2
    distance: Literal["euclidean", "cosine", "l1", "l1_512"] = "euclidean"  # l1, l1_512: learned
    loss: str | None = None  # None: contrastive for pairs, supervised_contrastive for classes
    margin: Annotated[float, 1e-6, 1e6] = 1.0  # distance beyond which impostors cost nothing
    triplet: Literal["hardest", "1+2", "2+1"] = "hardest"  # positives + negatives; hardest: 1+1
    temperature: Annotated[float, 1e-3, 100.0] = 0.05  # smaller looks at harder pairs
    # weight of what a pretrained network saw vary within classes, which tells unseen ones apart;
    # where ImageNet's own classes tell the images apart, nothing is trained with any
    distillation: Annotated[float, 0.0, 1e4] = 0.0

    # Optimisation
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"  # Keras's
    weight_decay: Share = 1e-2  # adamw only
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: warm-up, then down to zero
    # decides which epoch's weights are kept
    monitor: Literal["val_loss", "val_accuracy", "val_auc", "val_one_shot"] = "val_loss"
    patience: Count | None = None  # epochs without improvement before stopping; None: never
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where it is faster

    # The run
    false_accept_rate: Annotated[float, 1e-6, 0.5] | None = None  # aimed at; None: equal error rate
    runs_dir: str = "runs"  # run directories are made in here
    own_parts: str | None = None  # set by train.train(): names of encoder and loss given there
    deterministic: bool = False  # same bits every time, at some cost in speed

    def __post_init__(self):
        if self.weights == "none":  # as the command line says it: nothing to distil either
            object.__setattr__(self, "weights", None)
            object.__setattr__(self, "distillation", 0.0)
        for name, hint in HINTS.items():
            value = getattr(self, name)
            for good, expected in _expectations(name, value, hint):
                if not good:
                    raise ValueError(f"{name} must be {expected}. Received: {value!r}.")
        self._check_combinations()

    def _check_combinations(self):
        if self.loss_name not in LOSSES[self.sampling]:
            raise ValueError(
                f"loss='{self.loss}' does not go with sampling='{self.sampling}'. "
                f"Expected one of {LOSSES[self.sampling]}. Change loss or sampling."
            )
        if self.distance.startswith("l1") != (self.loss_name == "binary_crossentropy"):
            raise ValueError(
                f"loss='{self.loss}' does not go with distance='{self.distance}'. A learned "
                "distance (l1, l1_512) needs binary_crossentropy, and that loss needs one."
            )
        pretrained = self.encoder.startswith("efficientnet_lite0")
        has_imagenet = pretrained or self.encoder in ("vgg16", *APPLICATIONS)
        if self.weights == "imagenet" and not has_imagenet:
            raise ValueError(
                f"No weights of ImageNet are known for encoder='{self.encoder}'. Choose "
                "efficientnet_lite0, vgg16 or a network of keras.applications."
            )
        if self.distillation and not (self.weights and pretrained and self.sampling == "classes"):
            raise ValueError(
                f"distillation={self.distillation} needs efficientnet_lite0 with weights, and "
                f"sampling='classes'. Received: encoder='{self.encoder}', weights="
                f"{self.weights!r}, sampling='{self.sampling}'. Set distillation=0."
            )
        smallest = SMALLEST_IMAGES.get(self.encoder, 8 if self.encoder in ENCODERS else 32)
        if min(self.image_shape[:2]) < smallest:
            raise ValueError(
                f"image_size={self.image_size} is too small for encoder='{self.encoder}'. "
                f"Expected at least {smallest}. Raise image_size, or choose 'compact' or 'spatial'."
            )
        held_out = self.test_share + self.val_share
        if held_out > 0.8:
            raise ValueError(
                f"test_share + val_share leave too little to train on. Received: {held_out:.2f} "
                "of the images. Expected at most 0.8 together. Lower one of them."
            )

    @property
    def image_shape(self):
        """`(height, width, channels)` of an image after decoding."""
        return *parse_image_size(self.image_size), self.channels

    @property
    def loss_name(self):
        """The loss that is trained with: `loss`, or the one that goes with `sampling`."""
        return self.loss or f"{'' if self.sampling == 'pairs' else 'supervised_'}contrastive"

    @property
    def accuracy_distance(self):
        """The distance below which the curves of a training call a pair the same."""
        known = {"contrastive": self.margin / 2, "binary_crossentropy": 0.5}  # a probability
        return known.get(self.loss_name, 1.0)  # of unit-length embeddings: 60 degrees

    @property
    def total_steps(self):
        """Training steps of the whole run when no time limit and no early stop ends it."""
        return self.epochs * self.steps_per_epoch

    def to_json(self):
        """The config as JSON text, a field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


HINTS = typing.get_type_hints(Config)
RANGES = {  # of the numbers, from their types
    name: kind.__metadata__
    for name, hint in typing.get_type_hints(Config, include_extras=True).items()
    for kind in (hint, *typing.get_args(hint))
    if hasattr(kind, "__metadata__")
}


def _names(file, pattern):
    """What a pattern finds in a source file, whose import would take seconds."""
    return re.findall(f"^{pattern}", Path(file).read_text(), re.M)


HERE, KERAS = Path(__file__).parent, importlib.util.find_spec("keras")
ENCODERS = _names(HERE / "networks/encoders.py", r"def ([a-z]\w*)\(pixels, embedding_dim\)")
APPLICATIONS = []  # where Keras is not installed, what needs it will say so
if KERAS:
    APPLICATIONS = _names(
        Path(KERAS.origin).parent / "applications/__init__.py", r".*\b([A-Z]\w+) as \1\b"
    )
LOSSES = {  # what each sampling can feed
    "pairs": _names(HERE / "siamese_network_funcs.py", r"def (\w+)_loss\(same, distance\b"),
    "classes": _names(
        HERE / "networks/batch_losses.py", r"def (?:batch_)?(\w+)_loss\(labels, embeddings\b"
    ),
}
SMALLEST_IMAGES = {  # pixels; below, a network's last map would be empty; Keras's others take 32
    "leaf_cnn": 22, "koch": 65, "signet": 25, "dogs_cnn": 91, "vgg16": 32,
    "Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75,
}  # fmt: skip


def parse_image_size(value):
    """`(height, width)` from 112, "112" or "155x220", of 8 to 1024 pixels; else a ValueError."""
    sides = [int(side) if side.isdecimal() else 0 for side in str(value).lower().split("x")]
    if len(sides) > 2 or not all(8 <= side <= 1024 for side in sides):
        raise ValueError(
            "image_size must be one number or HEIGHTxWIDTH, each side between 8 and 1024 pixels. "
            f"Received: {value!r}."
        )
    return sides[0], sides[-1]


def _expectations(name, value, hint):
    """Yields whether a field's value is as it must be, and how that is in words."""
    options = typing.get_args(hint)
    if name == "image_size" or (value is None and type(None) in options):
        return  # `parse_image_size` tells
    if type(None) in options:
        hint, options = options[0], typing.get_args(options[0])
    if options:
        yield value in options and type(value) in map(type, options), f"one of {options}"
    elif hint is float:
        yield type(value) in (int, float), "a number"
    else:
        yield type(value) is hint, f"of type {hint.__name__}"
    if name in RANGES:
        low, high = RANGES[name]
        yield low <= value <= high, f"between {low} and {high}"
    if name == "encoder":
        known = f"one of {', '.join(ENCODERS)}, or a network of keras.applications"
        yield value in (*ENCODERS, *APPLICATIONS), known
    if hint is str and not options:
        yield value.strip(), "a text that is not empty"
    if name == "run_name":
        plain = not value.startswith(".") and Path(value).name == value
        yield plain, "the name of a folder, without a dot before it or a / in it"


# What several of the named configs have in common; python train.py NAME --data_dir PATH runs one.
# fmt: off
UNCHANGED = dict(rotate=0.0, zoom=0.0, shift=0.0, horizontal_flip=False, brightness=0.0)
PUBLISHED = dict(sampling="pairs", schedule="constant", unit_length=False, hard_share=0.0)
SIGNATURES = dict(data_dir="data/signatures", image_size="155x220", channels=1, fit="pad", ink=True,
                  unseen_share=0.3)
CHARACTERS = dict(data_dir="data/omniglot/images_background", channels=1, unseen_share=0.2,
                  hold_out_by="family", test_share=0.1, rotate=10.0, zoom=0.2,
                  horizontal_flip=False, brightness=0.0)
CONFIGS = {  # a line for each of: data, batches, augmentation, network and loss, optimisation
    # The default. Drawn leaves, nothing to download. 2 minutes, three seeds: known AUC 0.996,
    # unseen 0.970.
    "leaves": Config(image_size=64, epochs=18, max_minutes=3.5),
    # Recipe 1 on photographs of leaves, its flaws mended: images are split, not pairs; all are
    # decoded once; accuracy is accuracy. 2 minutes on two cores: known AUC 0.79, unseen 0.58.
    "plantvillage-recipe": Config(
        **UNCHANGED | PUBLISHED, data_dir="data/plantvillage", channels=1, val_share=0.17,
        max_classes=38, max_images_per_class=20, pairs_per_batch=256,
        encoder="leaf_cnn", embedding_dim=50, loss="contrastive",
        optimizer="rmsprop", learning_rate=1e-3, epochs=20, patience=3,
    ),
    # Ours for colour photographs: a network that knows ImageNet, its upper half trained on. 3.5
    # minutes, 12 classes of leaves: known AUC 0.997, unseen 0.946 (three draws of classes).
    "photographs": Config(
        data_dir="data/plantvillage", image_size=224,
        sampling="classes", images_per_class=6, steps_per_epoch=40,
        encoder="efficientnet_lite0", weights="imagenet", embedding_dim=256,
        temperature=0.1, distillation=8.0,
        learning_rate=5e-4, epochs=5, max_minutes=4.0, monitor="val_auc",
    ),
    # Recipe 2, Koch, Zemel & Salakhutdinov 2015: the weights are chosen on alphabets kept out of
    # training, not on those it is tested on. 0.25 s a step on two cores, 1.4 hours in all; after
    # 2 minutes unseen 20-way one-shot 14%.
    "koch": Config(
        **CHARACTERS | PUBLISHED,
        image_size=105, val_share=0.2, validate_on="classes",
        pairs_per_batch=32, steps_per_epoch=200,
        shear=0.3, affine_probability=0.5, shift=0.019,  # 2 pixels of 105
        encoder="koch", embedding_dim=4096, distance="l1", loss="binary_crossentropy",
        optimizer="adam", learning_rate=6e-5, epochs=100, monitor="val_one_shot",
    ),
    # Ours for characters. 10 minutes on two cores: 6.2, 12.4, 8.7% error, 20-way one-shot within
    # alphabets kept out (three draws of alphabets).
    "characters": Config(
        **CHARACTERS, image_size=64, val_share=0.05,
        sampling="classes", classes_per_batch=64, images_per_class=4, family_batches=0.85,
        shift=0.06, shear=0.2, rotated_classes=True,
        encoder="drawing", embedding_dim=256,
        steps_per_epoch=200, epochs=30, max_minutes=10.0,
    ),
    # Ours for faces: what a network knows of ImageNet, in quarters of the picture, whitened on the
    # people at hand; no training. Half a minute on two cores, 20 people: 10-way one-shot on ten
    # others 99.3, 98.4, 94.0% (three draws of people).
    "faces": Config(
        data_dir="data/att_faces", image_size=224, channels=1, test_share=0.1, val_share=0.2,
        sampling="classes",
        encoder="efficientnet_lite0_grid", weights="imagenet", embedding_dim=256,
        epochs=0,
    ),
    # Ours for signatures, as data/draw_signatures.py draws: ink alone, small turns, no flips. 60
    # drawn writers, 3 minutes: skilled EER on others 18.1%, with ten references 7.4%; random 0.2%.
    "signatures": Config(
        **SIGNATURES, validate_on="classes",
        sampling="classes", classes_per_batch=6, images_per_class=16,
        rotate=5.0, zoom=0.1, shift=0.04, shear=0.1, horizontal_flip=False, brightness=0.0,
        encoder="efficientnet_lite0_grid", weights="imagenet", embedding_dim=256,
        temperature=0.05, distillation=5.0,
        learning_rate=5e-4, steps_per_epoch=40, epochs=5, max_minutes=5.0,
    ),
    # Recipe 6, Dey et al. 2017: writers are split, ink alone is seen.
    "signet": Config(
        **SIGNATURES | UNCHANGED | PUBLISHED, pairs_per_batch=128,
        encoder="signet", embedding_dim=128, loss="contrastive",
        optimizer="rmsprop", learning_rate=1e-4, epochs=20,
    ),
    # Recipe 3: VGG16 with a learned L1 similarity. 120 images/s on two cores; after 2 minutes
    # known AUC 0.70.
    "vgg16": Config(
        **UNCHANGED | PUBLISHED, data_dir="data/plantvillage", image_size=105, pairs_per_batch=32,
        encoder="vgg16", distance="l1_512", loss="binary_crossentropy",
        optimizer="adam", learning_rate=1e-4, epochs=20,
    ),
    # Recipe 4: breeds of dogs, one number as the embedding. 60 images/s on two cores; after 2
    # minutes known AUC 0.54, unseen 0.58.
    "dogs-recipe": Config(
        **UNCHANGED | PUBLISHED, data_dir="data/dogs", image_size=256,
        pairs_per_batch=32, steps_per_epoch=10,
        encoder="dogs_cnn", embedding_dim=1, loss="contrastive", margin=2.0,
        optimizer="adam", learning_rate=5e-4, epochs=100,
    ),
    # Recipe 5: anchor, positive, negative. --triplet 1+2 or 2+1 for the other readings.
    # 2 minutes on two cores on photographs of leaves: known AUC 1.000, unseen 0.69.
    "triplet": Config(
        data_dir="data/plantvillage", sampling="classes",
        loss="triplet", margin=0.2, epochs=60, max_minutes=10.0,
    ),
}
# fmt: on


def read_config(path):
    """Reads a `config.json`; prints a line for every field that it lacks: today's default is used.

    A ValueError if it is no JSON object, or holds an unknown field or a value out of range.
    """
    try:
        values = dict(**json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError) as error:  # the last: no JSON object
        raise ValueError(f"{path} is not a readable config.json: {error}.") from error
    if unknown := [name for name in values if name not in HINTS]:
        raise ValueError(
            f"{path}: Config has no field {', '.join(map(repr, unknown))}. It is of another "
            "version: use that one, or remove the field from a copy and train anew."
        )
    config = Config(**values)
    for name in HINTS.keys() - values.keys():
        print(f"{path}: no '{name}', so {getattr(config, name)!r} is used.")
    return config


def parse_command_line(args, program):
    """`(config, name)` of `[name or config.json] [--field value]`; a file's name is its folder's.

    A ValueError if the name is unknown or the file unreadable; a wrong `--field` exits with status
    2 and a message, as command lines do. `program` is the name shown in the help.
    """
    is_named = bool(args) and not args[0].startswith("-")
    name = args[0] if is_named else "leaves"
    if name in CONFIGS:
        base = CONFIGS[name]
    elif name.endswith(".json"):
        base = dataclasses.replace(read_config(name), run_name=None)  # that is the first run's
        name = Path(name).resolve().parent.name
    else:
        raise ValueError(
            f"Unknown config '{name}'. Expected one of {', '.join(CONFIGS)}, "
            "a config.json or an unfinished run directory."
        )
    import tyro  # here, so that importing configs stays instant

    losses = "; ".join(f"of {kind} {', '.join(names)}" for kind, names in LOSSES.items())
    config = tyro.cli(
        tyro.conf.configure(tyro.conf.FlagConversionOff)(Config),  # --ink False
        prog=f"{program} [name or config.json]",
        description=f"Names: {', '.join(CONFIGS)}.\n\nEncoders: {', '.join(ENCODERS)}.\n\n"
        f"Losses: {losses}.\n\nThe defaults below are those of '{name}'.",
        args=args[is_named:],
        default=base,
        use_underscores=True,
    )
    return config, name


def main():
    """Prints a config, or the names of all."""
    try:
        config = len(sys.argv) > 1 and parse_command_line(sys.argv[1:], "configs.py")[0]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(config.to_json().rstrip() if config else "\n".join(CONFIGS))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head -1` ends it quietly
    sys.exit(main())
