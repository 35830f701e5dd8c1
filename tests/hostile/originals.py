"""Sound little images in every format and of every kind: good files, and what is cut and flipped for bad ones."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
    "ICO": "ico",
    "QOI": "qoi",
}
ORIENTED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
Size = tuple[int, int]
LITTLE: Size = (30, 20)


@dataclass(frozen=True, slots=True)
class Original:
    """An image file that nothing is wrong with.

    Attributes:
        name: what it is.
        kind: its format, as Pillow calls it.
        data: its bytes.
    """

    name: str
    kind: str
    data: bytes

    @property
    def suffix(self) -> str:
        """The usual extension."""
        return SUFFIXES[self.kind]


def originals(seed: int, size: Size = LITTLE, orientations: Iterable[int] = range(1, 9)) -> list[Original]:
    """The same for the same seed; so many pixels across and down, but for the icon."""
    generator = np.random.default_rng(seed)
    colours = _image(generator, size)
    return [
        *_plain(colours),
        *_modes(colours, generator),
        *_of_several(colours, generator),
        *_with_metadata(colours, orientations),
    ]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file's bytes."""
    if kind == "AVIF":
        options = {"speed": 10, **options}  # of encoding, no matter how small it gets
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour_profile() -> bytes:
    """An ICC profile that has to be applied: an sRGB one under another name; without its date, for the same bytes."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "sXYZ".encode("utf-16-be"))


def _image(generator: np.random.Generator, size: Size) -> Image.Image:
    """A soft gradient in a colour of chance with some noise on it."""
    across, down = np.meshgrid(*(np.linspace(0, 1, side) for side in size))
    ends = generator.integers(0, 256, (2, 3))
    soft = (across * down)[..., None] * (ends[1] - ends[0]) + ends[0]
    noisy = soft + generator.integers(-8, 9, soft.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _plain(colours: Image.Image) -> list[Original]:
    options: dict[str, dict[str, Any]] = {"ICO": {"sizes": [(16, 16), (24, 20)]}}
    return [Original(kind.lower(), kind, encode(colours, kind, **options.get(kind, {}))) for kind in SUFFIXES]


def _modes(colours: Image.Image, generator: np.random.Generator) -> list[Original]:
    shape = (colours.height, colours.width)
    alpha = colours.copy()
    alpha.putalpha(colours.convert("L"))
    palette = colours.quantize(17)
    grey_16 = Image.fromarray(generator.integers(0, 65536, shape, np.uint16))
    grey_32 = Image.fromarray(generator.integers(-(2**31), 2**31 - 1, shape, np.int32))
    real = generator.normal(0, 1000, shape).astype(np.float32)
    real[0, :3] = (np.nan, np.inf, -np.inf)
    found: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("progressive", "JPEG", colours, {"progressive": True}),
        ("grey", "JPEG", colours.convert("L"), {}),
        ("cmyk", "JPEG", colours.convert("CMYK"), {}),
        ("cmyk", "TIFF", colours.convert("CMYK"), {}),
        ("lab", "TIFF", Image.merge("LAB", colours.split()), {}),
        ("black-and-white", "PNG", colours.convert("1"), {}),
        ("black-and-white", "TIFF", colours.convert("1"), {"compression": "group4"}),
        ("16-bit", "PNG", grey_16, {}),
        ("16-bit", "TIFF", grey_16, {}),
        ("16-bit", "JPEG2000", grey_16, {}),
        ("32-bit", "TIFF", grey_32, {}),
        ("float", "TIFF", Image.fromarray(real), {}),
        ("float-lzw", "TIFF", Image.fromarray(real), {"compression": "tiff_lzw"}),
        ("float", "PPM", Image.fromarray(real), {}),
        ("grey-alpha", "PNG", alpha.convert("LA"), {}),
        ("alpha", "PNG", alpha, {}),
        ("alpha", "WEBP", alpha, {}),
        ("alpha", "TIFF", alpha, {}),
        ("alpha", "AVIF", alpha, {}),
        ("alpha", "JPEG2000", alpha, {}),
        ("alpha", "QOI", alpha, {}),
        ("lossless", "WEBP", colours, {"lossless": True}),
        ("lzw", "TIFF", colours, {"compression": "tiff_lzw"}),
        ("deflate", "TIFF", colours, {"compression": "tiff_deflate"}),
        ("jpeg", "TIFF", colours, {"compression": "jpeg"}),
        ("tiled", "JPEG2000", colours, {"tile_size": (colours.width * 2 // 3, colours.height * 2 // 3)}),
        ("transparent-palette", "PNG", palette, {"transparency": bytes(range(0, 255, 15))}),
        ("transparent-colour", "PNG", palette, {"transparency": 3}),
        ("transparent-colour", "GIF", palette, {"transparency": 3}),
    ]
    return [Original(f"{kind.lower()}-{name}", kind, encode(image, kind, **more)) for name, kind, image, more in found]


def _of_several(colours: Image.Image, generator: np.random.Generator) -> list[Original]:
    more = [_image(generator, colours.size) for _frame in range(2)]
    return [
        Original(
            f"{kind.lower()}-several", kind, _without_times(encode(colours, kind, save_all=True, append_images=more))
        )
        for kind in ("PNG", "WEBP", "GIF", "TIFF", "AVIF")
    ]


def _without_times(data: bytes) -> bytes:
    """The same bytes for the same images: in an AVIF of several is when it was made."""
    cleared = bytearray(data)
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        place = data.find(name)
        if place >= 0:
            cleared[place + 8 : place + 24] = bytes(16)
    return bytes(cleared)


def _with_metadata(colours: Image.Image, orientations: Iterable[int]) -> list[Original]:
    found = []
    for kind in ORIENTED:
        for orientation in orientations:
            exif = Image.Exif()
            exif[0x0112] = orientation
            name = f"{kind.lower()}-orientation-{orientation}"
            found.append(Original(name, kind, encode(colours, kind, exif=exif)))
        found.append(Original(f"{kind.lower()}-profile", kind, encode(colours, kind, icc_profile=colour_profile())))
    return found
