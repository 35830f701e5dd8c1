"""Owns the names of the decoder's matrices, and which of them lose most when they are rounded."""

from collections.abc import Iterable

HEAD = "lm_head"
_HEAD_TENSORS = ("lm_head.weight", "language_model.embed_tokens.weight")  # a tied head reads the token embeddings
_LAYERS = "layers."
_SENSITIVE = ("self_attn.v_proj", "mlp.down_proj")


def matrix_name(tensor: str) -> str:
    """What a matrix of the decoder is called, as in `layers.3.mlp.down_proj`, by the tensor it is made of."""
    return HEAD if tensor in _HEAD_TENSORS else tensor.removeprefix("language_model.").removesuffix(".weight")


def layer_count(tensors: Iterable[str]) -> int:
    """Decoder layers that tensors of these names belong to."""
    names = map(matrix_name, tensors)
    return len({name.split(".")[1] for name in names if name.startswith(_LAYERS)})


def in_sensitive_place(matrix: str, layers: int) -> bool:
    """Whether the model builder's `mixed_layers` gives a matrix of a decoder layer more bits.

    Its rule is llama.cpp's (llama-quant.cpp, `use_more_bits`): values and the MLP's last product, in the first eighth,
    the last eighth and every third layer between.
    """
    if not matrix.startswith(_LAYERS):
        return False
    number, _dot, kind = matrix.removeprefix(_LAYERS).partition(".")
    layer = int(number)
    ends = layer < layers / 8 or layer >= 7 * layers / 8
    return kind in _SENSITIVE and (ends or (layer - round(layers / 8)) % 3 == 2)
