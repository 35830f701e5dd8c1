"""Owns what becomes of a row: its output row, made from captions, from a failure, or from the row it is a copy of."""

from dataclasses import replace
from typing import Any

from batchcap.core.records import (
    Caption,
    CaptionRow,
    Duplicate,
    Failure,
    ImageFacts,
    ImageRow,
    PromptColumns,
    Status,
)


def caption_row(row: ImageRow, result: tuple[Caption, ...] | Failure, facts: ImageFacts | None) -> CaptionRow:
    """The output row of a row that has ended with captions, one for each prompt, or a failure."""
    values: dict[str, Any] = {"id": row.id, "source": row.source, "row": row.row}
    if facts is not None:
        values |= {
            "width": facts.width,
            "height": facts.height,
            "image_sha256": facts.sha256,
            "read_ms": facts.read_ms,
            "vision_ms": facts.vision_ms,
        }
    if isinstance(result, Failure):
        values |= {"status": Status.FAILED, "error_kind": result.kind, "error_message": result.message}
    else:
        first, *others = result
        values |= {"visual_tokens": first.visual_tokens, **_of_a_prompt(first)}
        values["extra_prompts"] = tuple(PromptColumns(**_of_a_prompt(other)) for other in others)
    return CaptionRow(**values)


def _of_a_prompt(caption: Caption) -> dict[str, Any]:
    """The values of `PromptColumns`."""
    return {
        "caption": caption.text,
        "thinking": caption.thinking,
        "verdict": caption.verdict,
        "finish_reason": caption.finish_reason,
        "prompt_tokens": caption.prompt_tokens,
        "new_tokens": len(caption.token_ids),
        "prefill_ms": caption.prefill_ms,
        "decode_ms": caption.decode_ms,
    }


def duplicate_row(row: ImageRow, duplicate: Duplicate, of: CaptionRow) -> CaptionRow:
    """The output row of a row whose image has been captioned as another row; no time was spent on it but reading."""
    return replace(
        of,
        id=row.id,
        source=row.source,
        row=row.row,
        attempts=1,
        read_ms=duplicate.read_ms,
        vision_ms=None,
        prefill_ms=None,
        decode_ms=None,
        extra_prompts=tuple(replace(columns, prefill_ms=None, decode_ms=None) for columns in of.extra_prompts),
    )
