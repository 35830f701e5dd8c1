"""Owns the drawn scenes: what there is to draw, the one right caption of a scene, and the drawing."""

import random
from dataclasses import dataclass
from functools import cache
from importlib import resources
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

SPRITE_PX = 128


@dataclass(frozen=True, slots=True)
class Kind:
    """An everyday thing: its sprite and its plain name for one and for several."""

    sprite: str
    singular: str
    plural: str


def _kind(sprite: str, name: str, plural: str | None = None, measure: tuple[str, str] | None = None) -> Kind:
    """A kind; `measure` is a measure word for one and for several, as in a slice of pizza."""
    if measure is not None:
        return Kind(sprite, f"{measure[0]} of {name}", f"{measure[1]} of {name}")
    return Kind(sprite, name, plural or f"{name}s")


KINDS: tuple[Kind, ...] = (
    _kind("airplane", "airplane"),
    _kind("apple", "apple"),
    _kind("ball", "ball"),
    _kind("banana", "banana"),
    _kind("bee", "bee"),
    _kind("bicycle", "bicycle"),
    _kind("boat", "boat"),
    _kind("book", "book"),
    _kind("bread", "bread", measure=("loaf", "loaves")),
    _kind("bus", "bus", "buses"),
    _kind("butterfly", "butterfly", "butterflies"),
    _kind("cake", "cake"),
    _kind("car", "car"),
    _kind("carrot", "carrot"),
    _kind("cat", "cat"),
    _kind("chicken", "chicken"),
    _kind("clock", "clock"),
    _kind("cookie", "cookie"),
    _kind("cow", "cow"),
    _kind("dog", "dog"),
    _kind("donut", "donut"),
    _kind("elephant", "elephant"),
    _kind("fish", "fish", "fish"),
    _kind("fox", "fox", "foxes"),
    _kind("frog", "frog"),
    _kind("grapes", "grapes", measure=("bunch", "bunches")),
    _kind("guitar", "guitar"),
    _kind("hamburger", "hamburger"),
    _kind("horse", "horse"),
    _kind("house", "house"),
    _kind("key", "key"),
    _kind("lemon", "lemon"),
    _kind("lion", "lion"),
    _kind("mushroom", "mushroom"),
    _kind("octopus", "octopus", "octopuses"),
    _kind("penguin", "penguin"),
    _kind("pig", "pig"),
    _kind("pizza", "pizza", measure=("slice", "slices")),
    _kind("rabbit", "rabbit"),
    _kind("rocket", "rocket"),
    _kind("sheep", "sheep", "sheep"),
    _kind("snail", "snail"),
    _kind("strawberry", "strawberry", "strawberries"),
    _kind("sunflower", "sunflower"),
    _kind("tree", "tree"),
    _kind("turtle", "turtle"),
    _kind("umbrella", "umbrella"),
    _kind("watermelon", "watermelon", measure=("slice", "slices")),
)
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (25, 25, 28),
    "blue": (80, 130, 230),
    "gray": (145, 145, 145),
    "green": (95, 180, 95),
    "orange": (240, 150, 60),
    "pink": (240, 165, 195),
    "purple": (140, 90, 190),
    "white": (250, 250, 250),
    "yellow": (242, 222, 100),
}
PHOTOGRAPHS = ("astronaut", "cat-chelsea", "coffee", "hubble", "rocket")
COLOUR_JITTER = 8
COUNTS = {2: "two", 3: "three"}
VOWELS = "aeiou"
# Sides of sprites as shares of the image's shorter side; the gap between small and large leaves no doubt.
SMALL_SHARE = (0.30, 0.38)
LARGE_SHARE = (0.66, 0.85)
PLACES = (
    "in the top left corner",
    "in the top right corner",
    "in the bottom left corner",
    "in the bottom right corner",
)


@dataclass(frozen=True, slots=True)
class Group:
    """One or several of a kind."""

    kind: Kind
    count: int

    @property
    def phrase(self) -> str:
        """As in `a slice of pizza` or `two cats`."""
        if self.count > 1:
            return f"{COUNTS[self.count]} {self.kind.plural}"
        return f"{article(self.kind.singular)} {self.kind.singular}"


@dataclass(frozen=True, slots=True)
class Background:
    """A colour, two colours fading from top to bottom, or (no colour) a photograph."""

    colours: tuple[str, ...]

    @property
    def phrase(self) -> str:
        """As in `on a green background`."""
        if not self.colours:
            return "on a photograph"
        if len(self.colours) == 1:
            return f"on {article(self.colours[0])} {self.colours[0]} background"
        return f"on a background fading from {self.colours[0]} to {self.colours[1]}"


@dataclass(frozen=True, slots=True)
class Sprite:
    """One thing at its place; `x`, `y` and `side` in shares of the image's shorter side."""

    kind: Kind
    x: float
    y: float
    side: float


@dataclass(frozen=True, slots=True)
class Scene:
    """An image to draw and its one right caption."""

    caption: str
    sprites: tuple[Sprite, ...]
    background: Background


def article(word: str) -> str:
    """`a` or `an`."""
    return "an" if word[0] in VOWELS else "a"


def compose(rng: random.Random, aspect: float) -> Scene:
    """Think up a scene for an image of the given aspect (width / height)."""
    # The image in units of its shorter side.
    width, height = max(1.0, aspect), max(1.0, 1 / aspect)
    background = _compose_background(rng)
    layout = rng.choices(("one", "same", "two", "three"), (3, 2, 5, 2))[0]
    maker = {"one": _compose_one, "same": _compose_same, "two": _compose_two, "three": _compose_three}[layout]
    words, sprites = maker(rng, width, height)
    return Scene(f"{words} {background.phrase}", sprites, background)


def _compose_background(rng: random.Random) -> Background:
    style = rng.choices(("plain", "fading", "photo"), (5, 3, 3))[0]
    if style == "photo":
        return Background(())
    return Background(tuple(rng.sample(sorted(COLOURS), 1 if style == "plain" else 2)))


def _compose_one(rng: random.Random, width: float, height: float) -> tuple[str, tuple[Sprite, ...]]:
    kind = rng.choice(KINDS)
    if rng.random() < 0.35:
        side = rng.uniform(*LARGE_SHARE)
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        return f"a large {kind.singular}", (Sprite(kind, x, y, side),)
    side = rng.uniform(*SMALL_SHARE)
    place = rng.randrange(5)
    if place == 4:
        x = (width - side) / 2 + rng.uniform(-0.06, 0.06)
        y = (height - side) / 2 + rng.uniform(-0.06, 0.06)
        return f"a small {kind.singular} in the middle", (Sprite(kind, x, y, side),)
    slack_x, slack_y = 0.12 * width, 0.12 * height
    x = rng.uniform(0, slack_x) if place % 2 == 0 else width - side - rng.uniform(0, slack_x)
    y = rng.uniform(0, slack_y) if place < 2 else height - side - rng.uniform(0, slack_y)
    return f"a small {kind.singular} {PLACES[place]}", (Sprite(kind, x, y, side),)


def _cells(
    rng: random.Random, box: tuple[float, float, float, float], count: int, *, across: bool
) -> list[tuple[float, float, float]]:
    """Places (x, y, side) for `count` things in a row (or a column) inside a box (x, y, width, height)."""
    x, y, width, height = box
    step_x, step_y = (width / count, height) if across else (width, height / count)
    largest = min(step_x, step_y, 0.62)
    side = rng.uniform(0.80, 1.0) * largest
    places = []
    for number in range(count):
        left = x + (number * step_x if across else 0) + rng.uniform(0, step_x - side)
        top = y + (0 if across else number * step_y) + rng.uniform(0, step_y - side)
        places.append((left, top, side))
    return places


def _compose_same(rng: random.Random, width: float, height: float) -> tuple[str, tuple[Sprite, ...]]:
    group = Group(rng.choice(KINDS), rng.choice((2, 3)))
    across = _goes_across(rng, width, height)
    cells = _cells(rng, (0, 0, width, height), group.count, across=across)
    return group.phrase, tuple(Sprite(group.kind, *cell) for cell in cells)


def _goes_across(rng: random.Random, width: float, height: float) -> bool:
    """Whether things stand side by side; in long images they follow the long side, so that none gets tiny."""
    if max(width, height) > 1.3:
        return width > height
    return rng.random() < 0.5


def _compose_two(rng: random.Random, width: float, height: float) -> tuple[str, tuple[Sprite, ...]]:
    counts = rng.choice(((1, 1), (1, 1), (1, 2), (2, 1)))
    first, second = (Group(kind, count) for kind, count in zip(rng.sample(KINDS, 2), counts, strict=True))
    across = _goes_across(rng, width, height)
    # Each group gets a share of the image by its number of things; a pair stands across or along the direction.
    split = 0.5
    if across:
        boxes = ((0.0, 0.0, width * split, height), (width * split, 0.0, width * (1 - split), height))
    else:
        boxes = ((0.0, 0.0, width, height * split), (0.0, height * split, width, height * (1 - split)))
    sprites: list[Sprite] = []
    for group, box in zip((first, second), boxes, strict=True):
        lengthwise = box[2] >= box[3]
        sprites += [Sprite(group.kind, *cell) for cell in _cells(rng, box, group.count, across=lengthwise)]
    relation = "to the left of" if across else "above"
    return f"{first.phrase} {relation} {second.phrase}", tuple(sprites)


def _compose_three(rng: random.Random, width: float, height: float) -> tuple[str, tuple[Sprite, ...]]:
    groups = [Group(kind, 1) for kind in rng.sample(KINDS, 3)]
    across = _goes_across(rng, width, height)
    cells = _cells(rng, (0, 0, width, height), 3, across=across)
    direction = "from left to right" if across else "from top to bottom"
    words = f"{groups[0].phrase}, {groups[1].phrase} and {groups[2].phrase} {direction}"
    return words, tuple(Sprite(group.kind, *cell) for group, cell in zip(groups, cells, strict=True))


@cache
def sprite_image(name: str) -> Image.Image:
    """The sprite of a kind, [SPRITE_PX, SPRITE_PX] RGBA."""
    return _asset(f"sprites/{name}.webp").convert("RGBA")


@cache
def photograph(name: str) -> Image.Image:
    """A photograph for backgrounds, RGB."""
    return _asset(f"photographs/{name}.jpg").convert("RGB")


def _asset(name: str) -> Image.Image:
    data = (resources.files("batchcap.demo") / "assets" / name).read_bytes()
    image = Image.open(BytesIO(data))
    image.load()
    return image


def draw(scene: Scene, rng: random.Random, width: int, height: int) -> Image.Image:
    """Draw a scene, RGB of width × height pixels."""
    canvas = _draw_background(scene.background, rng, width, height)
    draw_things(canvas, scene, rng)
    return canvas


def draw_things(canvas: Image.Image, scene: Scene, rng: random.Random) -> None:
    """Draw a scene's things onto a canvas, RGB or RGBA, that has the scene's aspect."""
    unit = min(canvas.size)
    for sprite in scene.sprites:
        side = max(8, round(sprite.side * unit))
        image = sprite_image(sprite.kind.sprite).resize((side, side), rng.choice(_FILTERS), reducing_gap=2.0)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = round(sprite.x * unit), round(sprite.y * unit)
        if canvas.mode == "RGBA":
            canvas.alpha_composite(image, place)
        else:
            canvas.paste(image, place, image)


_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)


def _colour(name: str, rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for value in COLOURS[name])
    return red, green, blue


def _draw_background(background: Background, rng: random.Random, width: int, height: int) -> Image.Image:
    if len(background.colours) == 1:
        return Image.new("RGB", (width, height), _colour(background.colours[0], rng))
    if background.colours:
        top, bottom = (np.array(_colour(name, rng), np.float32) for name in background.colours)
        fade = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        column = (top * (1 - fade) + bottom * fade).round().astype(np.uint8)
        return Image.fromarray(column[:, None, :]).resize((width, height), Image.Resampling.NEAREST)
    source = photograph(rng.choice(PHOTOGRAPHS))
    share = rng.uniform(0.5, 1.0)
    crop_width = min(source.width, source.height * width / height) * share
    crop_height = crop_width * height / width
    left, top_edge = rng.uniform(0, source.width - crop_width), rng.uniform(0, source.height - crop_height)
    crop = source.resize(
        (width, height), Image.Resampling.BILINEAR, box=(left, top_edge, left + crop_width, top_edge + crop_height)
    )
    return crop.filter(ImageFilter.BoxBlur(1)) if rng.random() < 0.3 else crop


def corpus() -> list[str]:
    """Phrases that hold every word a caption can have."""
    phrases = [f"{PLACES[0]} {PLACES[3]} in the middle a large an small", "to the left of above from left to right"]
    phrases += ["from top to bottom , and"]
    phrases += [Background(()).phrase]
    phrases += [Background((name,)).phrase for name in COLOURS]
    phrases += [Background((name, other)).phrase for name in COLOURS for other in COLOURS if name != other]
    for kind in KINDS:
        phrases += [Group(kind, count).phrase for count in (1, 2, 3)]
    return phrases
