"""The composer: same seed, same image; every caption follows the grammar and says what is drawn."""

import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from batchcap.demo.scenes import COLOURS, KINDS, PHOTOGRAPHS, Scene, Sprite, compose, draw, photograph, sprite_image

SCENES = 3000
MAX_THINGS = 3
ROUNDING = 1e-9

_ONE = "|".join(sorted((re.escape(kind.singular) for kind in KINDS), key=len, reverse=True))
_SEVERAL = "|".join(sorted((re.escape(kind.plural) for kind in KINDS), key=len, reverse=True))
_COLOUR = "|".join(COLOURS)
_THING = rf"an? (?:{_ONE})"
_GROUP = rf"(?:{_THING}|two (?:{_SEVERAL}))"
_GRAMMAR = re.compile(
    rf"(?P<one>a large (?:{_ONE})"
    rf"|a small (?:{_ONE}) in the (?:middle|(?:top|bottom) (?:left|right) corner))"
    rf"|(?P<same>(?:two|three) (?:{_SEVERAL}))"
    rf"|(?P<two>{_GROUP} (?:to the left of|above) {_GROUP})"
    rf"|(?P<three>{_THING}, {_THING} and {_THING} from (?:left to right|top to bottom))"
)
_BACKGROUND = re.compile(
    rf"an? (?:{_COLOUR}) background|a background fading from (?:{_COLOUR}) to (?:{_COLOUR})|a photograph"
)


def scenes(count: int = SCENES) -> list[Scene]:
    rng = random.Random(5)
    return [compose(rng, 2.2 ** rng.uniform(-1, 1)) for _ in range(count)]


def middle(sprite: Sprite) -> tuple[float, float]:
    return sprite.x + sprite.side / 2, sprite.y + sprite.side / 2


def parts(scene: Scene) -> tuple[str, str]:
    words, background = scene.caption.split(" on ", 1)
    return words, background


def test_the_same_seed_gives_the_same_picture_and_caption() -> None:
    def make(seed: int) -> tuple[str, bytes]:
        rng = random.Random(seed)
        scene = compose(rng, 1.4)
        return scene.caption, draw(scene, rng, 210, 150).tobytes()

    assert [make(seed) for seed in range(20)] == [make(seed) for seed in range(20)]
    assert len({make(seed) for seed in range(20)}) == 20


def test_every_caption_follows_the_grammar() -> None:
    for scene in scenes():
        words, background = parts(scene)
        assert _GRAMMAR.fullmatch(words), scene.caption
        assert _BACKGROUND.fullmatch(background), scene.caption


def test_every_kind_colour_and_layout_turns_up() -> None:
    made = scenes()
    layouts = Counter(match.lastgroup for scene in made if (match := _GRAMMAR.fullmatch(parts(scene)[0])))
    assert set(layouts) == {"one", "same", "two", "three"}
    assert {sprite.kind for scene in made for sprite in scene.sprites} == set(KINDS)
    assert {colour for scene in made for colour in scene.background.colours} == set(COLOURS)
    assert {len(scene.background.colours) for scene in made} == {0, 1, 2}
    assert len(KINDS) >= 40


def test_names_are_unambiguous() -> None:
    assert len({kind.singular for kind in KINDS}) == len(KINDS)
    assert len({kind.plural for kind in KINDS}) == len(KINDS)


def test_the_caption_says_how_many_of_what() -> None:
    for scene in scenes():
        words, _background = parts(scene)
        drawn = Counter(sprite.kind for sprite in scene.sprites)
        assert 1 <= drawn.total() <= MAX_THINGS
        for kind, count in drawn.items():
            expected = kind.singular if count == 1 else f"{('two', 'three')[count - 2]} {kind.plural}"
            assert re.search(rf"\b{expected}\b", words), scene.caption


@pytest.mark.parametrize(
    ("relation", "axis"),
    [("to the left of", 0), ("from left to right", 0), ("above", 1), ("from top to bottom", 1)],
)
def test_the_order_in_the_caption_is_the_order_in_the_picture(relation: str, axis: int) -> None:
    told = [scene for scene in scenes() if relation in scene.caption]
    assert told
    for scene in told:
        kinds = list(dict.fromkeys(sprite.kind for sprite in scene.sprites))
        words = re.split(rf" {relation}|, | and ", parts(scene)[0])
        for phrase, kind in zip(words, kinds, strict=False):
            assert kind.singular in phrase or kind.plural in phrase
        for before, after in pairwise(kinds):
            last = max(middle(sprite)[axis] for sprite in scene.sprites if sprite.kind is before)
            first = min(middle(sprite)[axis] for sprite in scene.sprites if sprite.kind is after)
            assert last < first, scene.caption


def test_sizes_and_places_leave_no_doubt() -> None:
    for scene in scenes():
        if "large" in scene.caption:
            assert scene.sprites[0].side >= 0.6
        if "small" in scene.caption:
            assert scene.sprites[0].side <= 0.4


def test_things_lie_inside_the_picture_and_apart() -> None:
    rng = random.Random(6)
    for _ in range(SCENES):
        aspect = 2.2 ** rng.uniform(-1, 1)
        width, height = max(1.0, aspect), max(1.0, 1 / aspect)
        sprites = compose(rng, aspect).sprites
        for number, sprite in enumerate(sprites):
            assert -ROUNDING <= sprite.x <= width - sprite.side + ROUNDING
            assert -ROUNDING <= sprite.y <= height - sprite.side + ROUNDING
            for other in sprites[:number]:
                distance = max(abs(sprite.x - other.x), abs(sprite.y - other.y))
                assert distance >= min(sprite.side, other.side) - ROUNDING


def test_a_fading_background_goes_from_top_to_bottom() -> None:
    scene = next(scene for scene in scenes() if scene.background.colours == ("black", "white"))
    pixels = np.asarray(draw(Scene(scene.caption, (), scene.background), random.Random(1), 60, 40))
    assert pixels[0].max() < 60
    assert pixels[-1].min() > 200


def test_every_picture_is_there() -> None:
    for kind in KINDS:
        assert sprite_image(kind.sprite).mode == "RGBA"
    for name in PHOTOGRAPHS:
        assert photograph(name).mode == "RGB"
