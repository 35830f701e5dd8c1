"""Owns the way from any pixel mode to RGB: deep greys, transparency, colour profiles."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

WHITE = (255, 255, 255, 255)
_DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})


def to_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """A loaded picture in mode RGB, and the ICC profile its values still are in.

    Transparency is laid over white, as transformers does. Profiles of RGB pictures are handed back, to be applied after
    the resize, on a hundredth of the pixels; those of grey, CMYK and LAB pictures are applied here.

    Raises:
        ValueError: Pillow knows no way from this mode to RGB.
    """
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode in _DEEP_MODES:
        image = _to_8_bit(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB"), profile
    if image.mode in {"RGB", "RGBX", "P"}:
        return image.convert("RGB"), profile
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _to_srgb(image, ImageCms.ImageCmsProfile(lab)), None
    if profile is not None and image.mode in {"L", "CMYK"}:
        return _apply(image, profile), None
    return image.convert("RGB"), None


def apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB picture's values in sRGB; a profile that is broken or for other colours is ignored."""
    return image if profile is None else _apply(image, profile)


def _apply(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(parsed).lower():
            return image.convert("RGB")  # a transform would only add rounding
        return _to_srgb(image, parsed)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    result = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    if result is None:
        raise ValueError("no colour transform")
    return result


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Deep grey to 8 bit.

    Whole numbers within 0 … 65535 are 16-bit grey: divided by 257. Real numbers within 0 … 1 are
    multiplied by 255, within 0 … 255 kept. Any other range has no meaning of its own: it is stretched from the
    smallest finite value (black) to the largest (white). Values that are no number become black.
    """
    values: NDArray[Any] = np.asarray(image)
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if image.mode != "F" and low >= 0 and high <= 65535:
        grey = wide / 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        grey = wide * 255
    elif image.mode == "F" and low >= 0 and high <= 255:
        grey = wide
    else:
        grey = (wide - low) * (255 / (high - low) if high > low else 0.0)
    clean = np.nan_to_num(grey, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    return Image.fromarray(np.rint(clean).astype(np.uint8))
