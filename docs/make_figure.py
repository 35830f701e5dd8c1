"""Owns `docs/model.svg`: the way of one image through Qwen3-VL-2B with its shapes. Run it with `make docs`."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURE = HERE / "model.svg"
CONFIG = HERE.parent / "tests" / "data" / "qwen3-vl" / "config-2B.json"
IMAGE_PX = (384, 288)  # across, down
TEXT_TOKENS = (4, 13)  # of the prompt, before and after the image
SIZE = (1000, 560)
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1c2733; }
  .title { font-weight: 600; } .small { font-size: 12px; fill: #4a5a6a; } .where { font-size: 12px; fill: #8a4b08; }
  .box { stroke: #44586c; stroke-width: 1.3; rx: 6; } .line { stroke: #44586c; stroke-width: 1.6; fill: none; }
  .deep { stroke: #b45f06; stroke-width: 1.8; fill: none; stroke-dasharray: 5 3; }
"""
COLOURS = {"host": "#eef3f8", "vision": "#e3f1e4", "decoder": "#fdf0dc", "state": "#f3eef8"}


@dataclass(frozen=True)
class Box:
    """A step: where it stands, what it is, what leaves it."""

    left: int
    top: int
    width: int
    height: int
    kind: str
    lines: tuple[str, ...]

    def draw(self) -> str:
        """The rectangle and its lines."""
        frame = f'x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}"'
        parts = [f'<rect class="box" {frame} fill="{COLOURS[self.kind]}"/>']
        for number, line in enumerate(self.lines):
            place = f'x="{self.left + self.width / 2:g}" y="{self.top + 21 + 18 * number}" text-anchor="middle"'
            parts.append(f'<text class="{"small" if number else "title"}" {place}>{escape(line)}</text>')
        return "\n".join(parts)

    @property
    def middle(self) -> float:
        """Half-way down."""
        return self.top + self.height / 2

    @property
    def right(self) -> int:
        """The right edge."""
        return self.left + self.width


def figure() -> str:
    """The whole SVG file."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    boxes = _boxes(text, vision)
    content = [box.draw() for box in boxes.values()]
    for start, end in (("image", "patches"), ("patches", "tower"), ("tower", "merger")):
        content.append(_arrow(boxes[start], boxes[end]))
    content += _tables(boxes) + _decoder_arrows(boxes) + _deepstack(boxes, vision["deepstack_visual_indexes"])
    width, height = SIZE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    title = "<title>The way of one image through Qwen3-VL-2B, from pixels to words</title>"
    marker = '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    marker += 'orient="auto-start-reverse">'
    marker += '<path d="M0 0 8 4 0 8z" fill="#44586c"/></marker></defs>'
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", marker, paper, *content, "</svg>", ""])


def _boxes(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Box]:
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    across, down = (side // patch for side in IMAGE_PX)
    patches, tokens = across * down, across * down // merge**2
    values = vision["in_channels"] * vision["temporal_patch_size"] * patch**2
    hidden, width = vision["hidden_size"], text["hidden_size"]
    half = hidden // vision["num_heads"] // 2
    levels = len(vision["deepstack_visual_indexes"])
    length = sum(TEXT_TOKENS) + tokens
    layers = text["num_hidden_layers"]
    return {
        "image": Box(
            20,
            40,
            150,
            84,
            "host",
            ("image", f"{IMAGE_PX[0]} × {IMAGE_PX[1]} pixels", "turned upright,", "resized to the budget"),
        ),
        "patches": Box(
            220,
            40,
            170,
            84,
            "host",
            ("patches", f"{down} × {across} grid", f"[{patches}, {values}]", "merge block by block"),
        ),
        "tower": Box(
            440,
            40,
            220,
            84,
            "vision",
            (
                f"tower: {vision['depth']} blocks",
                f"[{patches}, {hidden}]",
                "attention over the whole",
                "image, both ways",
            ),
        ),
        "merger": Box(
            710,
            40,
            270,
            84,
            "vision",
            (
                "merger",
                f"{merge} × {merge} patches → one visual token",
                f"[{patches}, {hidden}] → [{tokens}, {merge**2 * hidden}]",
                f"→ [{tokens}, {width}]",
            ),
        ),
        "tables": Box(
            400,
            170,
            190,
            66,
            "host",
            ("from the grid alone", f"positions [{patches}, {hidden}]", f"cos, sin [{patches}, {half}]"),
        ),
        "levels": Box(
            710,
            170,
            270,
            66,
            "vision",
            (
                f"{levels} DeepStack mergers",
                f"after blocks {', '.join(map(str, vision['deepstack_visual_indexes']))}",
                f"each [{tokens}, {width}]",
            ),
        ),
        "prompt": Box(
            20,
            300,
            170,
            84,
            "host",
            (
                "prompt",
                f"{TEXT_TOKENS[0]} + {TEXT_TOKENS[1]} text tokens",
                "embedding table",
                f"[{sum(TEXT_TOKENS)}, {width}]",
            ),
        ),
        "sequence": Box(
            240,
            300,
            190,
            84,
            "host",
            ("sequence", "text, image, text", f"[{length}, {width}]", f"mRoPE positions [3, {length}]"),
        ),
        "first": Box(
            480,
            300,
            180,
            84,
            "decoder",
            (
                f"decoder layers 0 to {levels - 1}",
                "after each: add its level",
                "to the image's places",
                f"[{length}, {width}]",
            ),
        ),
        "rest": Box(
            710,
            300,
            270,
            84,
            "decoder",
            (
                f"decoder layers {levels} to {layers - 1}",
                f"{text['num_attention_heads']} heads, {text['num_key_value_heads']} of keys and values",
                "INT4 weights",
                f"[{length}, {width}]",
            ),
        ),
        "head": Box(
            710,
            440,
            270,
            66,
            "decoder",
            ("head, last token only", f"[1, {width}] → [1, {text['vocab_size']:,}]", "arg-max inside the graph"),
        ),
        "next": Box(480, 440, 180, 66, "host", ("next token", "its row of the table", "goes in again")),
        "cache": Box(240, 440, 190, 66, "state", ("KV slot of this image", "written in place,", "one token a step")),
    }


def _tables(boxes: dict[str, Box]) -> list[str]:
    tower, tables = boxes["tower"], boxes["tables"]
    x = tables.left + tables.width / 2
    return [_path(f"M{x:g} {tables.top} V{tower.top + tower.height}")]


def _decoder_arrows(boxes: dict[str, Box]) -> list[str]:
    sequence, rest, head = boxes["sequence"], boxes["rest"], boxes["head"]
    arrows = [_arrow(boxes["prompt"], sequence), _arrow(sequence, boxes["first"]), _arrow(boxes["first"], rest)]
    arrows.append(_path(f"M{rest.left + rest.width / 2:g} {rest.top + rest.height} V{head.top}"))
    following, cache = boxes["next"], boxes["cache"]
    arrows.append(_path(f"M{head.left} {head.middle:g} H{following.right}"))
    bottom = sequence.top + sequence.height
    arrows.append(_path(f"M{following.left + 40} {following.top} V404 H{sequence.right - 40} V{bottom}"))
    arrows.append(_path(f"M{cache.right - 70} {cache.top} V420 H{boxes['first'].right - 40} V{bottom}", both=True))
    merger = boxes["merger"]
    arrows.append(_path(f"M{merger.left + 20} {merger.top + merger.height} V148 H340 V{sequence.top}"))
    arrows.append('<text class="where" x="350" y="270">takes the place of the pad tokens</text>')
    return arrows


def _deepstack(boxes: dict[str, Box], blocks: list[int]) -> list[str]:
    levels, first = boxes["levels"], boxes["first"]
    tower = boxes["tower"]
    x = first.right - 30
    ways = [
        f"M{tower.right - 30} {tower.top + tower.height} V{levels.middle:g} H{levels.left}",
        f"M{levels.left + 30} {levels.top + levels.height} V262 H{x} V{first.top}",
    ]
    names = ", ".join(f"block {block} → layer {level}" for level, block in enumerate(blocks))
    text = f'<text class="where" x="{x + 12}" y="282">{names}</text>'
    return [f'<path class="deep" d="{way}" marker-end="url(#head)"/>' for way in ways] + [text]


def _arrow(start: Box, end: Box) -> str:
    return _path(f"M{start.right} {start.middle:g} H{end.left}")


def _path(way: str, *, both: bool = False) -> str:
    start = ' marker-start="url(#head)"' if both else ""
    return f'<path class="line" d="{way}" marker-end="url(#head)"{start}/>'


def main() -> None:
    """Write the figure."""
    FIGURE.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
