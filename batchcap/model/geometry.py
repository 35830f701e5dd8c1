"""Owns the shape of a Qwen3-VL model as every stage needs it; read from a bundle or a checkpoint."""

from dataclasses import dataclass

ROPE_THETA = 10000.0  # of the vision tower; checkpoints with another one are refused


@dataclass(frozen=True, slots=True)
class TextGeometry:
    """Shape of the language model."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """Shape of the vision tower.

    `deepstack_levels` are the blocks whose output feeds a DeepStack merger, in order: level i is added after decoder
    layer i. `position_side` is the side of the learned square of position embeddings.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    heads: int
    out_hidden_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    deepstack_levels: tuple[int, ...]
    position_side: int
    hidden_act: str

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: C·t·p·p."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def token_side_px(self) -> int:
        """Side in pixels of the square that one visual token covers after the resize."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How the checkpoint wants its images: areas in pixels, one mean and deviation a channel."""

    min_area_px: int
    max_area_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids with a meaning of their own."""

    image_pad: int
    vision_start: int
    vision_end: int
    stop: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Everything about a model's shape."""

    text: TextGeometry
    vision: VisionGeometry
    image: ImageSettings
    tokens: TokenIds


def feature_bytes(geometry: Geometry, visual_tokens: int) -> int:
    """What the vision features of an image take: float32 embeddings and DeepStack levels [1 + D, T, H]."""
    return 4 * (1 + len(geometry.vision.deepstack_levels)) * visual_tokens * geometry.text.hidden_size
