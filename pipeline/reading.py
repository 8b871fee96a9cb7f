"""The one way an image file becomes pixels: in training, evaluation, use and exported examples.

With NumPy and Pillow alone, so that `inspect.getsource` writes it out into a program of its own.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFilter, ImageOps

FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # in bytes 8 to 12
BIT_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # that cameras, scanners and programs write
DECLARED = {"PGM": (0.0, 65535.0)}  # the file says its largest number, and Pillow scales by it
SPECK = 5  # of 255: darkness around a pixel of ink, up to which it is dust, no part of a stroke
PHOTOMETRIC, BITS, COMPRESSION, PLANES = 262, 258, 259, 284  # tags of a TIFF
EXIF_ORIENTATION, FLIPS = 0x0112, Image.Transpose
TURNS = {2: FLIPS.FLIP_LEFT_RIGHT, 3: FLIPS.ROTATE_180, 4: FLIPS.FLIP_TOP_BOTTOM}
TURNS |= {5: FLIPS.TRANSPOSE, 6: FLIPS.ROTATE_270, 7: FLIPS.TRANSVERSE, 8: FLIPS.ROTATE_90}

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode() refuses, not warns


class BadImage(ValueError):
    """A file that cannot be read as an image; the message is the reason."""


def decode(data, config, ranges=None):
    """Turns the bytes of an image file into pixels of one shape, upright.

    The first frame counts; transparency is laid on white; numbers of more than 8 bits are scaled
    from their range in use to 0..255.

    Args:
        data: Bytes of the file.
        config: Anything with `image_shape` (height, width, channels), `fit` ("stretch", or "pad"
            to keep the picture's shape within a border of its own colour) and `ink` (True for
            the ink of a scanned drawing alone, black on white).
        ranges: What `measure` found in the data set, mode -> (low, high); other modes are scaled
            by what the file itself holds.

    Returns:
        `(pixels, kind)`: uint8 `config.image_shape`; the original's size and mode, "25x25 RGB".

    Raises:
        BadImage: With the reason, whatever is wrong; beyond 89 million pixels, too.
    """
    height, width, channels = config.image_shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with _open(data) as image:
            kind = f"{image.width}x{image.height} {image.mode}"
            if not config.ink:  # a JPEG decodes straight to 1/2, 1/4, 1/8, but ink needs it all
                image.draft(mode, (max(height, width),) * 2)
            eight_bits = _to_eight_bits(image, ranges or {})
            turn = TURNS.get(image.getexif().get(EXIF_ORIENTATION))
        upright = eight_bits if turn is None else eight_bits.transpose(turn)
        if config.ink:
            upright = _ink(upright.convert("L"))
        small = _fit(upright.convert(mode), height, width, config)
    except Exception as error:  # Pillow's readers raise nearly anything on a broken file
        raise BadImage(say_why(error)) from error
    return np.asarray(small).reshape(height, width, channels), kind


def measure(data):
    """Range in use of an image's numbers: {mode: (low, high)}, empty for 8 bits; see `decode`.

    Integers use as many bits as their largest takes (8, 10, 12, 14, 16, 24, 32); fractions lie
    in 0..1 or -1..1, or else count as integers; others reach from the least to the largest.

    Raises:
        BadImage: As `decode`.
    """
    try:
        with _open(data) as image:
            mode, values = _numbers(image)
    except Exception as error:
        raise BadImage(say_why(error)) from error
    return {} if values is None or mode in DECLARED else {mode: _range(values)}


def say_why(error):
    """What went wrong, in a few words without a full stop."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or none of a kind that is read"
    return getattr(error, "strerror", None) or str(error).strip().rstrip(".") or repr(error)


def _open(data):
    """The opened image, not yet decoded."""
    if not data:
        raise BadImage("empty file")
    formats = FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        try:
            import pillow_heif
        except ImportError as error:
            raise BadImage("HEIC, which needs: pip install pillow-heif") from error
        pillow_heif.register_heif_opener()
        formats = [*FORMATS, "HEIF"]
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise BadImage(f"a decompression bomb of {image.width}x{image.height} pixels")
    return image


def _numbers(image):
    """`(mode, array)` of an image of more than 8 bits, else `(mode, None)`."""
    if image.mode == "I" and image.format == "PPM":
        return "PGM", np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)  # I;16 in any byte order
        white_is_zero = tags.get(PHOTOMETRIC) == 0 and image.mode.startswith("I;16")
        return image.mode[:4], 65535 - values if white_is_zero else values
    if tags.get(PLANES) == 2 and max(tags.get(BITS, (8,))) > 8 and tags.get(COMPRESSION) == 1:
        raise BadImage("a TIFF of 16 bits in separate planes: save it with interleaved channels")
    words = image.tile[0].args if image.format in ("PNG", "TIFF") else ""
    words = words if isinstance(words, str) else words[0]
    if words[:-1] in ("RGB;16", "RGBA;16"):
        # Pillow keeps the upper bytes; read in the other byte order, they are the lower ones.
        swapped = words[:-1] + ("L" if words[-1] == "B" else "B")
        with Image.open(io.BytesIO(image.fp.getvalue()), formats=[image.format]) as other:
            other.tile = [
                tile._replace(args=swapped if words == tile.args else (swapped, *tile.args[1:]))
                for tile in other.tile
            ]
            return words[:-1], np.asarray(image).astype(int) * 256 + np.asarray(other)
    return image.mode, None


def _range(values):
    """See `measure`; not-a-number and transparency count for nothing."""
    values = values[..., :3] if values.shape[2:] == (4,) else values
    values = values[np.isfinite(values)]
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if values.dtype.kind == "f" and low >= -1.001 and high <= 1.001:
        return (0.0 if low >= 0 else -1.0), 1.0
    if low < 0:
        return low, high
    return 0.0, next((2.0**bits - 1 for bits in BIT_DEPTHS if high < 2**bits), high)


def _to_eight_bits(image, ranges):
    """Numbers scaled to 0..255, transparency laid on white."""
    mode, values = _numbers(image)
    image.load()
    if values is not None:
        low, high = (ranges | DECLARED).get(mode) or _range(values)
        scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / (high - low))
        image = Image.fromarray((scaled + 0.5).clip(0, 255).astype("u1"))
        if image.mode == "RGBA":
            image.putalpha(Image.fromarray((values[..., 3] // 257).astype("u1")))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _ink(grey):
    """Black ink on white, by Otsu's threshold (1979), cut to the ink but for specks apart."""
    pixels = np.asarray(grey)
    counts = np.bincount(pixels.ravel(), minlength=256)
    below, dark = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (dark[-1] * (below / below[-1]) - dark) ** 2 / (below * (below[-1] - below))
    ink = pixels <= np.argmax(np.nan_to_num(between, posinf=0))
    ink = ink if ink.mean() <= 0.5 else ~ink  # white on black
    if not ink.any() or ink.all():  # one colour
        return Image.new("L", grey.size, "white")
    reach = max(ink.shape) // 32
    padded = ImageOps.expand(Image.fromarray(ink).convert("L"), reach)
    around = ImageOps.crop(padded.filter(ImageFilter.BoxBlur(reach)), reach)
    strokes = ink & (np.asarray(around) > SPECK)
    strokes = strokes if strokes.any() else ink
    (top, bottom), (left, right) = (np.flatnonzero(strokes.any(axis))[[0, -1]] for axis in (1, 0))
    return Image.fromarray(np.where(ink, 0, 255)[top : bottom + 1, left : right + 1].astype("u1"))


def _fit(image, height, width, config):
    """The image stretched to a size, or padded with the median of its border (ink: white)."""
    if config.fit == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    scale = min(height / image.height, width / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(small).reshape(size[1], size[0], -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = "white" if config.ink else tuple(np.median(border, axis=0).astype(int).tolist())
    padded = Image.new(image.mode, (width, height), colour)
    padded.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return padded
