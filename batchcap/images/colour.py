"""Owns the way from any pixel mode to RGB: deep greys, transparency, colour profiles."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

WHITE = (255, 255, 255, 255)
_DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
# Images are converted a few rows at a time: what a conversion takes in between, up to 40 bytes a pixel, is then small
# beside the image itself.
_BAND_PX = 1 << 16

_ToRgb = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """A loaded image in mode RGB (the same one where it is already), and the ICC profile its values still are in.

    Transparency is laid over white, as transformers does. Profiles of RGB images are handed back, to be applied after
    the resize, on a hundredth of the pixels; those of grey, CMYK and LAB images are applied here.

    Raises:
        ValueError: Pillow knows no way from this mode to RGB.
    """
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode == "RGB" and not image.has_transparency_data:
        return image, profile
    convert = _conversion(image, profile)
    result = Image.new("RGB", image.size)
    for top, band in _bands(image):
        result.paste(convert(band), (0, top))
    return result, profile if image.mode in {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"} else None


def apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB image's values in sRGB; a profile that is broken or for other colours is ignored."""
    return image if profile is None else _through_profile(profile, "RGB")(image)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of whole rows, each with the number of its first row."""
    rows = max(1, _BAND_PX // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _conversion(image: Image.Image, profile: bytes | None) -> _ToRgb:
    """What makes RGB of each band of the image."""
    if image.mode == "LAB":
        return _through(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")
    if image.mode == "CMYK":
        return _through_profile(profile, "CMYK")
    if image.mode in _DEEP_MODES:
        to_grey, grey_to_rgb = _to_8_bit(image), _through_profile(profile, "L")
        return lambda band: grey_to_rgb(to_grey(band))
    if image.mode in {"L", "LA"} and profile is not None:
        grey_to_rgb = _through_profile(profile, "L")
        return lambda band: grey_to_rgb(_over_white(band).convert("L"))
    return _over_white


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = Image.new("RGBA", image.size, WHITE)
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _through_profile(profile: bytes | None, mode: str) -> _ToRgb:
    """From this mode and profile to sRGB; plainly where there is none, or one that is broken or for other colours."""
    if profile is None:
        return _over_white
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(parsed).lower():
            return _over_white  # a transform would only add rounding
        return _through(parsed, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _over_white


def _through(profile: ImageCms.ImageCmsProfile, mode: str) -> _ToRgb:
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")

    def convert(image: Image.Image) -> Image.Image:
        result = ImageCms.applyTransform(image, transform)
        if result is None:
            raise ValueError("no colour transform")
        return result

    return convert


def _to_8_bit(image: Image.Image) -> _ToRgb:
    """What makes 8-bit grey of each band of a deep grey image.

    Whole numbers within 0 … 65535 are 16-bit grey: divided by 257. Real numbers within 0 … 1 are
    multiplied by 255, within 0 … 255 kept. Any other range has no meaning of its own: it is stretched from the
    smallest finite value (black) to the largest (white). Values that are no number become black, the transparent one
    white.
    """
    low, high = _finite_range(image)
    factor, black = 255 / (high - low) if high > low else 0.0, low
    if image.mode != "F" and low >= 0 and high <= 65535:
        factor, black = 1 / 257, 0.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        factor, black = 255.0 if high <= 1 else 1.0, 0.0
    transparent = image.info.get("transparency")

    def convert(band: Image.Image) -> Image.Image:
        values: NDArray[Any] = np.asarray(band)
        with np.errstate(invalid="ignore"):  # infinity times nothing
            grey = (values.astype(np.float64) - black) * factor
        clean = np.nan_to_num(grey, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        if transparent is not None:
            clean[values == transparent] = 255
        return Image.fromarray(np.rint(clean).astype(np.uint8))

    return convert


def _finite_range(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest value that are numbers; 0 and 0 where there is none."""
    ranges = []
    for _top, band in _bands(image):
        values: NDArray[Any] = np.asarray(band)
        finite = values[np.isfinite(values)]
        if finite.size:
            ranges.append((float(finite.min()), float(finite.max())))
    lows, highs = zip(*ranges, strict=True) if ranges else ((0.0,), (0.0,))
    return min(lows), max(highs)
