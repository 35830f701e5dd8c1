"""Owns what is asked of the model about an image: the prompts, and how the tokens of an answer are chosen."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked about each image. Its columns in the output end with its name; "" leaves theirs as they are."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen, and when it ends.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        temperature: 0 is greedy.
        top_p: tokens are drawn from the most likely ones that hold this share together.
        top_k: tokens are drawn from so many of the most likely ones; 0: from all.
        repetition_penalty: tokens that were there before get less likely by this factor; 1: they do not.
        seed: of the draws.
        loop_stop: an answer that has begun to repeat itself without end is ended.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    loop_stop: bool = True

    @property
    def needs_logits(self) -> bool:
        """Whether the arg-max inside the graph is not enough."""
        return self.temperature > 0 or self.repetition_penalty != 1.0

    @property
    def depends_on_row(self) -> bool:
        """Whether equal images get other captions in other rows."""
        return self.temperature > 0


@lru_cache(256)
def caption_key(prompts: tuple[Prompt, ...], sampling: Sampling) -> str | None:
    """What decides the captions of an image beside its bytes, as a hex digest.

    None where rows decide them, too: then equal images have no equal captions.
    """
    if sampling.depends_on_row:
        return None
    content = [[dataclasses.astuple(prompt) for prompt in prompts], dataclasses.astuple(sampling)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
