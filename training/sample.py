"""Owns `sample_data/`: drawn scenes in many file formats with their true captions, and a Parquet manifest.

`python -m training.sample` writes the same bytes each time (with the same versions of Pillow and pyarrow).
"""

import argparse
import csv
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from batchcap.demo.scenes import Scene, compose, draw, draw_things
from training.batches import GREYS

# Evaluation seeds are far below this one, training seeds above.
SAMPLE_SEED_SPACE = 1 << 36
JPEG_QUALITY = 88
MANIFEST_ROWS = 16
MANIFEST_SIDES_PX = (200, 360)
PHOTOGRAPHS = ("cat-chelsea", "coffee", "hubble", "rocket")
# Things that can be told apart without their colours.
GREY_KINDS = frozenset({"bicycle", "cow", "elephant", "key", "penguin", "sheep"})

# How an image has to be turned before it is stored, so that a reader who obeys the EXIF orientation sees it upright.
STORED_TURN = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _any(_scene: Scene) -> bool:
    return True


def _without_photograph(scene: Scene) -> bool:
    """Flat images stay small in formats that lose nothing."""
    return bool(scene.background.colours)


def _on_white(scene: Scene) -> bool:
    """What is transparent is laid over white."""
    return scene.background.colours == ("white",)


def _grey(scene: Scene) -> bool:
    """The caption still holds when the colours are gone."""
    greys = len(scene.background.colours) == 1 and GREYS.issuperset(scene.background.colours)
    return greys and all(thing.kind.sprite in GREY_KINDS for thing in scene.sprites)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the sample: how large its scene is drawn, which scenes suit it, and how it is stored.

    Attributes:
        path: below the sample folder.
        size: width and height in pixels as a person sees it.
        format: Pillow's name of the format.
        suits: whether a scene can be stored so without making its caption wrong.
        mode: pixel mode to store; RGBA keeps the background transparent.
        orientation: EXIF orientation.
        options: for Pillow's `save`.
    """

    path: str
    size: tuple[int, int]
    format: str = "JPEG"
    suits: Callable[[Scene], bool] = _any
    mode: str = "RGB"
    orientation: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


def _entries() -> tuple[Entry, ...]:
    flat, white = _without_photograph, _on_white
    turned = [
        Entry(f"orientations/exif-{number}.jpg", (420, 300) if number % 2 else (310, 410), orientation=number)
        for number in STORED_TURN
    ]
    formats = [
        Entry("formats/plain.jpg", (480, 360)),
        Entry("formats/plain.jpeg", (360, 360)),
        Entry("formats/UPPER-CASE.JPG", (360, 300)),
        Entry("formats/progressive.jpg", (400, 300), options={"progressive": True}),
        Entry("formats/cmyk.jpg", (320, 240), suits=flat, mode="CMYK"),
        Entry("formats/grey.jpg", (320, 260), suits=_grey, mode="L"),
        Entry("formats/grey.png", (300, 300), "PNG", suits=_grey, mode="L"),
        Entry("formats/plain.png", (320, 240), "PNG", suits=flat),
        Entry("formats/palette.png", (280, 280), "PNG", suits=flat, mode="P"),
        Entry("formats/transparent.png", (300, 260), "PNG", suits=white, mode="RGBA"),
        Entry("formats/jpeg-inside.png", (400, 300)),
        Entry("formats/lossy.webp", (400, 300), "WEBP"),
        Entry("formats/lossless.webp", (300, 240), "WEBP", suits=flat, options={"lossless": True}),
        Entry("formats/transparent.webp", (300, 240), "WEBP", suits=white, mode="RGBA"),
        Entry("formats/animated.gif", (240, 200), "GIF", suits=flat, options={"save_all": True, "duration": 500}),
        Entry("formats/plain.bmp", (160, 128), "BMP"),
        Entry("formats/lzw.tiff", (260, 200), "TIFF", suits=flat, options={"compression": "tiff_lzw"}),
        Entry("formats/two-pages.tif", (240, 180), "TIFF", flat, options={"compression": "jpeg", "save_all": True}),
        Entry("formats/plain.avif", (400, 300), "AVIF", options={"max_threads": 1}),
        Entry("formats/plain.jp2", (320, 240), "JPEG2000", options={"quality_layers": [30]}),
        Entry("formats/plain.ppm", (160, 120), "PPM"),
    ]
    sizes = [(96, 96), (131, 257), (187, 401), (401, 187), (333, 333), (480, 640), (640, 480), (1024, 768), (1200, 630)]
    sized = [Entry(f"sizes/{width}x{height}.jpg", (width, height)) for width, height in sizes]
    names = [Entry(f"names/{name}.jpg", (320, 280)) for name in ("two words", "größe", "deep/er/still")]
    return (*turned, *formats, *sized, *names)


ENTRIES = _entries()


def write_sample(folder: Path, seed: int = 0) -> None:
    """Write the images, `captions.csv`, the photographs and `manifest.parquet`.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        seed: decides the scenes.
    """
    rows: list[tuple[str, str]] = []
    for number, entry in enumerate(ENTRIES):
        rng = random.Random(SAMPLE_SEED_SPACE + (seed << 16) + number)
        scene = _suitable(rng, entry)
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(scene, rng, entry))
        rows.append((entry.path, scene.caption))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "caption"), *sorted(rows)])
    pq.write_table(_manifest(seed), folder / "manifest.parquet", row_group_size=MANIFEST_ROWS // 2)
    photographs = folder / "photographs"
    photographs.mkdir(exist_ok=True)
    for name in PHOTOGRAPHS:
        source = resources.files("batchcap.demo") / "assets" / "photographs" / f"{name}.jpg"
        with resources.as_file(source) as asset:
            shutil.copyfile(asset, photographs / f"{name}.jpg")


def _suitable(rng: random.Random, entry: Entry) -> Scene:
    """The first scene of the generator that can be stored as the entry wants."""
    width, height = entry.size
    while True:
        scene = compose(rng, width / height)
        if entry.suits(scene):
            return scene


def _encode(scene: Scene, rng: random.Random, entry: Entry) -> bytes:
    if entry.mode == "RGBA":
        image = Image.new("RGBA", entry.size)
        draw_things(image, scene, rng)
    else:
        image = draw(scene, rng, *entry.size)
    if entry.mode == "P":
        image = image.quantize(256)
    elif entry.mode != image.mode:
        image = image.convert(entry.mode)
    turn = STORED_TURN[entry.orientation]
    if turn is not None:
        image = image.transpose(turn)
    options = dict(entry.options)
    if entry.orientation != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = entry.orientation
        options["exif"] = exif
    if options.get("save_all"):
        # A second frame with nothing of the scene: only the first one counts.
        options["append_images"] = [Image.new("RGB", entry.size, (60, 60, 60))]
    if entry.format in {"JPEG", "WEBP"}:
        options.setdefault("quality", JPEG_QUALITY)
    buffer = BytesIO()
    image.save(buffer, entry.format, **options)
    return buffer.getvalue()


def _manifest(seed: int) -> pa.Table:
    """Scenes of their own, in the layout of a Hugging Face data set with an `Image` column."""
    columns: dict[str, list[Any]] = {"name": [], "image": [], "caption_true": [], "things": [], "background": []}
    for number in range(MANIFEST_ROWS):
        rng = random.Random(SAMPLE_SEED_SPACE + (seed << 16) + len(ENTRIES) + number)
        size = rng.randint(*MANIFEST_SIDES_PX), rng.randint(*MANIFEST_SIDES_PX)
        entry = Entry(f"scene-{number:02d}.jpg", size)
        scene = _suitable(rng, entry)
        columns["name"].append(Path(entry.path).stem)
        columns["image"].append({"bytes": _encode(scene, rng, entry), "path": entry.path})
        columns["caption_true"].append(scene.caption)
        columns["things"].append(len(scene.sprites))
        columns["background"].append(" to ".join(scene.background.colours) or None)
    features = {
        "name": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "caption_true": {"dtype": "string", "_type": "Value"},
        "things": {"dtype": "int32", "_type": "Value"},
        "background": {"dtype": "string", "_type": "Value"},
    }
    schema = pa.schema(
        {
            "name": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "caption_true": pa.string(),
            "things": pa.int32(),
            "background": pa.string(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table(columns, schema=schema)


def main() -> None:
    """Parse the options and write the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("sample_data"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_sample(options.output, options.seed)


if __name__ == "__main__":
    main()
