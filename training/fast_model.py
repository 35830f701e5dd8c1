"""Owns a faster forward pass for training: transformers' own modules, run over images of one grid at once.

The stock vision model runs attention image by image. In training all images of a batch share a grid, so they
stand side by side in one batched attention. `train.py` asserts that the loss equals the stock forward's.

Letters: B images, N patches of an image, T visual tokens of an image, D vision width, H decoder width, S sequence.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids


def patchify(pixels: Tensor) -> Tensor:
    """Pixels [B, height, width, 3] uint8 to patches [B, N, 3·2·16·16] float32, merge block by merge block."""
    values = pixels.float().div(127.5).sub(1)
    count, height, width, _ = values.shape
    down, across = height // 32, width // 32
    values = values.view(count, down, 2, 16, across, 2, 16, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    frames = values.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return frames.reshape(count, down * across * 4, 3 * 2 * 16 * 16)


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = values.chunk(2, -1)
    return values * cos + torch.cat((-second, first), -1) * sin


def vision_features(
    model: Qwen3VLForConditionalGeneration, patches: Tensor, grid: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Features [B·T, H] and the DeepStack features, one [B·T, H] a level, of images of one grid [1, 3]."""
    visual = model.model.visual
    config = visual.config
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=visual.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    projection = visual.patch_embed.proj
    hidden = F.linear(patches, projection.weight.view(config.hidden_size, -1), projection.bias)
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(hidden, get_vision_position_ids(grid, 2))
    cos, sin = cos[None, :, None, :].float(), sin[None, :, None, :].float()
    count, patch_count = patches.shape[:2]
    levels: list[Tensor] = []
    config_scale = (config.hidden_size // config.num_heads) ** -0.5
    for number, block in enumerate(visual.blocks):
        qkv = block.attn.qkv(block.norm1(hidden)).view(count, patch_count, 3, config.num_heads, -1)
        query, key, value = qkv.unbind(2)
        query, key = (_rotate(each, cos, sin).to(value.dtype).transpose(1, 2) for each in (query, key))
        # Written out: at these sizes it is faster on a CPU than the fused kernel.
        scores = (query * config_scale) @ key.transpose(-1, -2)
        mixed = scores.float().softmax(-1).to(value.dtype) @ value.transpose(1, 2)
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(count, patch_count, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in config.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[config.deepstack_visual_indexes.index(number)]
            levels.append(merger(hidden.reshape(count * patch_count, -1)))
    return visual.merger(hidden.reshape(count * patch_count, -1)), levels


def caption_logits(
    model: Qwen3VLForConditionalGeneration, token_ids: Tensor, patches: Tensor, grid: Tensor, wanted: Tensor
) -> Tensor:
    """Logits [K, V] at the K positions where `wanted` [B, S] is true; padding on the right needs no mask."""
    embeds, levels = vision_features(model, patches, grid)
    visual_mask = token_ids == model.config.image_token_id
    inputs = model.model.language_model.embed_tokens(token_ids)
    inputs = inputs.masked_scatter(visual_mask[..., None], embeds.to(inputs.dtype))
    types = visual_mask[:1].int()
    positions, _delta = model.model.get_rope_index(token_ids[:1], mm_token_type_ids=types, image_grid_thw=grid)
    output = model.model.language_model(
        inputs_embeds=inputs,
        position_ids=positions.expand(3, len(token_ids), -1),
        visual_pos_masks=visual_mask,
        deepstack_visual_embeds=levels,
        use_cache=False,
    )
    logits: Tensor = model.lm_head(output.last_hidden_state[wanted])
    return logits


class FakeInt4Linear(nn.Linear):
    """A linear layer whose weights are rounded as MatMulNBits rounds them, gradients passing straight through."""

    block_size = 128

    def forward(self, values: Tensor) -> Tensor:
        """Multiply by the rounded weights."""
        rounded = round_int4(self.weight, self.block_size)
        return F.linear(values, self.weight + (rounded - self.weight).detach(), self.bias)


@torch.no_grad()
def round_int4(weight: Tensor, block_size: int) -> Tensor:
    """Weights [N, K] rounded to symmetric INT4 in blocks along K.

    The rule of onnxruntime's `MlasQuantizeBlockwise`: the value of largest magnitude in a block becomes -8.
    """
    rows, columns = weight.shape
    pad = -columns % block_size
    blocks = F.pad(weight.float(), (0, pad)).view(rows, -1, block_size)
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = extreme / -8
    levels = torch.where(scale == 0, 0.0, blocks / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7)
    return (levels * scale).view(rows, -1)[:, :columns].to(weight.dtype)


def use_fake_int4(model: Qwen3VLForConditionalGeneration, *, on: bool) -> None:
    """Make the decoder's linear layers round their weights, or stop doing so."""
    layers = [*model.model.language_model.modules(), model.lm_head]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.__class__ = FakeInt4Linear if on else nn.Linear
