"""Owns the language model run one decoder layer at a time in float32: memory holds a single layer's weights.

Letters used for shapes: S tokens of a prompt, H hidden size, D DeepStack levels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.quality.rollout import ImagePrompt

# Takes the name of a submodule and what it reads for one prompt, [S, K].
Listener = Callable[[str, Tensor], None]


class LayerStream:
    """Prompts on their way through the language model, all of them through one layer before the next is read.

    The layers are those of transformers.

    Args:
        checkpoint: where the weights come from.
        prompts: what goes through.
    """

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[ImagePrompt]) -> None:
        self._tensors = checkpoint.tensors
        # Any: transformers' own annotations don't describe what its models take.
        self._config: Any = Qwen3VLConfig.from_dict(checkpoint.config).text_config
        self._config._attn_implementation = "sdpa"  # noqa: SLF001 - as `from_pretrained` sets it
        self._prompts = prompts
        self._hidden = [torch.from_numpy(prompt.embeds)[None] for prompt in prompts]
        rotary: Any = Qwen3VLTextRotaryEmbedding(self._config)
        positions = [torch.from_numpy(prompt.positions)[:, None] for prompt in prompts]
        self._rotary = [rotary(hidden, position) for hidden, position in zip(self._hidden, positions, strict=True)]

    def layers(self) -> Iterator[nn.Module]:
        """Each decoder layer in turn; `pass_through` it before the next one is asked for."""
        for index in range(self._config.num_hidden_layers):
            with torch.device("meta"):
                layer: Any = Qwen3VLTextDecoderLayer(self._config, index)
            yield self._loaded(layer, f"language_model.layers.{index}.")

    @torch.inference_mode()
    def pass_through(self, layer: nn.Module, listened: Sequence[str], listener: Listener) -> None:
        """Run all prompts through a layer.

        Args:
            layer: the one that `layers` gave last.
            listened: submodules whose input is told to `listener`, for one prompt after the other.
            listener: called with a submodule's name and its input [S, K].
        """
        index: int = layer.self_attn.layer_idx  # type: ignore[assignment, union-attr]
        with _listening(layer, listened, listener):
            for number, prompt in enumerate(self._prompts):
                hidden: Tensor = layer(self._hidden[number], position_embeddings=self._rotary[number])
                if index < len(prompt.deepstack):
                    hidden = hidden + torch.from_numpy(prompt.deepstack[index])
                self._hidden[number] = hidden

    @torch.inference_mode()
    def head_inputs(self) -> Iterator[Tensor]:
        """What the head reads for each prompt, [S, H]: the last layer's output behind the last norm."""
        with torch.device("meta"):
            norm: Any = Qwen3VLTextRMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
        loaded = self._loaded(norm, "language_model.norm.")
        for hidden in self._hidden:
            yield loaded(hidden)[0]

    def _loaded(self, module: nn.Module, prefix: str) -> nn.Module:
        """A module without weights, given those of the checkpoint in float32."""
        state = {}
        for name in module.state_dict():
            tensor = self._tensors[prefix + name]
            state[name] = torch.from_numpy(tensor.rows(0, tensor.shape[0]))
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(requires_grad=False)


@contextmanager
def _listening(layer: nn.Module, names: Sequence[str], listener: Listener) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, inputs: listener(name, inputs[0][0])

    handles = [layer.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
