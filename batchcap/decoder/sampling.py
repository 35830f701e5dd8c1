"""Owns the choice of the next token where the arg-max inside the graph is not enough."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from batchcap.core.prompts import Sampling
from batchcap.core.records import Float32Array, Int64Array


class Sampler:
    """Chooses one row's tokens from its logits.

    The draws depend on the seed, the row's id, the prompt's name and the step alone, so a row gets the same caption
    beside any other rows and prompts, in any worker, and after a resume.
    """

    def __init__(self, sampling: Sampling, row_id: str, prompt_ids: Int64Array, prompt_name: str = "") -> None:
        self._sampling = sampling
        self._seen = set(prompt_ids.tolist())
        key = f"{sampling.seed}\0{row_id}" + (f"\0{prompt_name}" if prompt_name else "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        self._key = int.from_bytes(digest[:16], "little")

    def choose(self, logits: Float32Array, step: int) -> int:
        """The token for step `step` from logits [V]; it counts as seen from then on."""
        if self._sampling.temperature == 0:
            token = int(self._penalised(logits).argmax())
        else:
            token = self._draw(self.probabilities(logits), step)
        self._seen.add(token)
        return token

    def probabilities(self, logits: Float32Array) -> NDArray[np.float64]:
        """The probability of each token [V], from logits [V]: penalty, temperature, top-k, softmax, top-p."""
        scores = self._penalised(logits) / self._sampling.temperature
        top_k, top_p = self._sampling.top_k, self._sampling.top_p
        if 0 < top_k < len(scores):
            scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
        probabilities: NDArray[np.float64] = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        if top_p < 1:
            _keep_top_p(probabilities, top_p)
        return probabilities

    def _penalised(self, logits: Float32Array) -> NDArray[np.float64]:
        """Tokens seen get less likely (the rule of transformers' RepetitionPenaltyLogitsProcessor)."""
        scores = logits.astype(np.float64)
        penalty = self._sampling.repetition_penalty
        if penalty != 1.0:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values = scores[seen]
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        return scores

    def _draw(self, probabilities: NDArray[np.float64], step: int) -> int:
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=step))
        cumulative = np.cumsum(probabilities)
        drawn = generator.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, drawn, side="right"))


def _keep_top_p(probabilities: NDArray[np.float64], top_p: float) -> None:
    """Of probabilities [V], keep in place the smallest set of the largest that holds `top_p`, scaled to 1."""
    # Sorting the whole vocabulary would cost more than the decode step: no token below this bound can be in the set,
    # since all below it together hold less than what the set may leave out.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < top_p]
    values = probabilities[kept]
    probabilities[:] = 0
    probabilities[kept] = values / values.sum()
