"""Owns the images that an export looks at: some of the user's own, or a few that come with batchcap."""

import dataclasses
import hashlib
import io
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from batchcap.config import DEFAULT_PROMPT, InputConfig, VisionConfig, VisionDtype
from batchcap.core.errors import RowError, UsageError
from batchcap.core.records import ImageRow, Patches
from batchcap.core.sources import Bytes, Piece
from batchcap.core.text import shown_name
from batchcap.export.checkpoint.options import MAX_IMAGES
from batchcap.images.preprocess import patches_of
from batchcap.inputs.discover import discover
from batchcap.inputs.encoded import read_image
from batchcap.inputs.registry import open_readers
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import Geometry, ImageSettings, VisionGeometry
from batchcap.model.prompt import PromptTemplate

log = logging.getLogger(__name__)

MIN_VISUAL_TOKENS = 4
_PHOTOGRAPHS = ("astronaut", "cat-chelsea", "coffee", "hubble", "rocket")
_DRAWN_SIDES_PX = (256, 448)
_DRAWN_SEED_SPACE = 1 << 37  # no scene that the demo model was trained or is evaluated on


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """Which images to look at, and what to ask about them.

    Attributes:
        inputs: image files, folders, tables or patterns; none: the images that come with batchcap.
        count: most images that are taken, evenly spread over all there are.
        prompt: what to ask about each image.
        max_visual_tokens: budget an image.
    """

    inputs: tuple[str, ...] = ()
    count: int = MAX_IMAGES
    prompt: str = DEFAULT_PROMPT
    max_visual_tokens: int = 256

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"--limit must be at least 1, not {self.count}")


def require_inputs(choice: ImageChoice) -> None:
    """Look whether there are images at all, before the work that they are for.

    Raises:
        UsageError: an input does not exist or has no image.
    """
    if choice.inputs:
        for _source in discover(InputConfig(choice.inputs), Path(os.devnull)):
            pass


def fitted(choice: ImageChoice, bundle: Bundle, new_tokens: int) -> ImageChoice:
    """The choice with no more visual tokens than the bundle's context has room for.

    Args:
        choice: what is wanted.
        bundle: one whose decoder may be missing.
        new_tokens: longest answer.

    Raises:
        UsageError: there is no room at all, or the prompt can't be used.
    """
    room = bundle.context - PromptTemplate.from_bundle(bundle, choice.prompt).text_tokens - new_tokens
    if room < MIN_VISUAL_TOKENS:
        raise UsageError(
            f"a context of {bundle.context} tokens has no room for an image and {new_tokens} new tokens beside this "
            "prompt: choose a larger --context"
        )
    return dataclasses.replace(choice, max_visual_tokens=min(choice.max_visual_tokens, room))


def load_images(choice: ImageChoice, geometry: Geometry, exclude: Path) -> list[Patches]:
    """Read the chosen images; `index` counts them. Those that can't be read are left out with a warning.

    Args:
        choice: which ones.
        geometry: of the model that will see them.
        exclude: a folder that is skipped.

    Raises:
        UsageError: an input does not exist, or none of its images can be read.
    """
    config = VisionConfig(choice.max_visual_tokens, VisionDtype.FP32)
    images: list[Patches] = []
    for row in input_rows(choice, exclude) if choice.inputs else _own_rows(choice.count):
        try:
            images.append(load_patches(row, geometry.vision, geometry.image, config))
        except RowError as error:
            log.warning("%s is skipped: %s", row.id, error.message)
    if not images:
        raise UsageError(f"no image in {', '.join(map(shown_name, choice.inputs))} can be read: name others")
    return images


def images_sha256(choice: ImageChoice, images: list[Patches]) -> str:
    """Digest of all that images give to a measurement: their bytes in their order, prompt and budget."""
    content = [choice.prompt, str(choice.max_visual_tokens), *(image.sha256 for image in images)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def input_rows(choice: ImageChoice, exclude: Path) -> Iterator[ImageRow]:
    """Rows of the inputs, evenly spread."""
    config = InputConfig(choice.inputs)
    found = (source for source in discover(config, exclude) if not source.is_metadata)
    sources = list({source.path: source for source in found}.values())
    total = sum(source.rows for source in sources)
    count = min(choice.count, total)
    wanted = [number * total // count for number in range(count)]
    readers, first = open_readers(config), 0
    for source in sources:
        for index, row in enumerate(wanted):
            if first <= row < first + source.rows:
                piece = Piece(index, source.id, str(source.path), source.kind, row - first, 1)
                yield from readers[source.kind].rows(piece, [index])
        first += source.rows


def _own_rows(count: int) -> Iterator[ImageRow]:
    """The photographs of the package, then drawn scenes, always the same ones."""
    from batchcap.demo.scenes import compose, draw  # noqa: PLC0415 - seldom needed

    photographs = resources.files("batchcap.demo") / "assets" / "photographs"
    for index, name in enumerate(_PHOTOGRAPHS[:count]):
        yield ImageRow(index, name, "batchcap", index, Bytes((photographs / f"{name}.jpg").read_bytes()))
    for index in range(len(_PHOTOGRAPHS), count):
        chance = random.Random(_DRAWN_SEED_SPACE + index)  # noqa: S311 - it draws, it keeps no secret
        width, height = chance.randint(*_DRAWN_SIDES_PX), chance.randint(*_DRAWN_SIDES_PX)
        buffer = io.BytesIO()
        draw(compose(chance, width / height), chance, width, height).save(buffer, "PNG")
        yield ImageRow(index, f"drawn-{index:02}", "batchcap", index, Bytes(buffer.getvalue()))


def load_patches(row: ImageRow, geometry: VisionGeometry, settings: ImageSettings, config: VisionConfig) -> Patches:
    """Read one image and make patches of it; see `read_image` and `patches_of`."""
    return patches_of(read_image(row), geometry, settings, config)
