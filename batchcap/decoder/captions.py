"""Owns the way from the tokens of an answer to a caption: its texts, and the verdict on them."""

from tokenizers import Tokenizer

from batchcap.core.records import Caption, FinishReason
from batchcap.decoder.requests import WrittenTokens
from batchcap.decoder.thinking import ThinkingParser
from batchcap.decoder.verdict import judge


class CaptionReader:
    """Makes captions of what a model wrote. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._parsers = {opened: ThinkingParser(tokenizer, opened=opened) for opened in (False, True)}

    def read(self, written: WrittenTokens, *, opens_thinking: bool) -> Caption:
        """The caption.

        Args:
            written: what the decoder wrote.
            opens_thinking: whether the prompt opens the model's thoughts, so that the answer begins inside them.
        """
        reason, kept = written.finish_reason, written.tokens_before_repeats
        told = written.token_ids[:kept] if reason is FinishReason.LOOP else written.token_ids
        answer = self._parsers[opens_thinking].read(list(told), cut=reason is not FinishReason.STOP)
        thought = answer.thinking is not None
        return Caption(
            index=written.index,
            token_ids=written.token_ids,
            text=answer.caption,
            finish_reason=reason,
            verdict=judge(answer.caption, reason, looping=kept is not None, thought=thought),
            prompt_tokens=written.prompt_tokens,
            visual_tokens=written.visual_tokens,
            prefill_ms=written.prefill_ms,
            decode_ms=written.decode_ms,
            thinking=answer.thinking,
            prompt=written.prompt,
        )
