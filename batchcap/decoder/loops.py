"""Owns the watch for endless repetition in the tokens of a caption."""

# A tail that is one cycle of tokens over and over is a loop from so many tokens and repeats on. Prose repeats words,
# not whole cycles: "a cat, a dog, a cat and a dog" has none, and a list of three equal items is a list. A cycle of
# a whole sentence is a loop from its third time on: a fourth would seldom fit into a caption.
MAX_CYCLE_TOKENS = 32
MIN_LOOP_TOKENS = 24
SHORT_CYCLE_TOKENS = 16
MIN_REPEATS_SHORT = 4
MIN_REPEATS_LONG = 3


class LoopDetector:
    """Watches one caption's tokens for endless repetition; each token costs `MAX_CYCLE_TOKENS` comparisons."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # For each cycle length: how many of the last tokens equal the token one cycle before them.
        self._matches = [0] * (MAX_CYCLE_TOKENS + 1)

    def add(self, token: int) -> None:
        """Take in the next token."""
        tokens = self._tokens
        count = len(tokens)
        for cycle in range(1, min(MAX_CYCLE_TOKENS, count) + 1):
            self._matches[cycle] = self._matches[cycle] + 1 if tokens[count - cycle] == token else 0
        tokens.append(token)

    @property
    def tokens_before_repeats(self) -> int | None:
        """How many tokens there are up to the end of the first cycle; None where there is no loop."""
        for cycle in range(1, MAX_CYCLE_TOKENS + 1):
            length = self._matches[cycle] + cycle
            repeats = MIN_REPEATS_SHORT if cycle < SHORT_CYCLE_TOKENS else MIN_REPEATS_LONG
            if self._matches[cycle] and length >= max(MIN_LOOP_TOKENS, repeats * cycle):
                return len(self._tokens) - self._matches[cycle]
        return None
