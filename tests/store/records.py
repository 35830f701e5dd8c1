"""Caption rows for the tests of the store."""

from batchcap.core.records import CaptionRow, FinishReason, Verdict


def caption_row(index: int, caption: str = "a cat on a mat") -> CaptionRow:
    return CaptionRow(
        id=f"{index}.png",
        source=f"/images/{index}.png",
        row=0,
        caption=caption,
        verdict=Verdict.OK,
        finish_reason=FinishReason.STOP,
        prompt_tokens=30,
        visual_tokens=12,
        new_tokens=5,
        width=640,
        height=480,
        image_sha256="0" * 64,
        read_ms=1.5,
        vision_ms=2.25,
        prefill_ms=3.0,
        decode_ms=4.0,
    )
