"""Owns the records that travel between the stages: row, patches, features, caption, output row.

Letters used for shapes: P patches of an image, T visual tokens (P / merge²), H hidden size of the decoder,
D DeepStack levels, C·t·p·p values of a patch (channels × frames × patch height × patch width).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchcap.core.errors import ErrorKind
from batchcap.core.prompts import Prompt, Sampling, caption_key
from batchcap.core.sources import ImageRef

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class Status(StrEnum):
    """The `status` column."""

    OK = "ok"
    FAILED = "failed"


class FinishReason(StrEnum):
    """Why decoding of a caption ended; the `finish_reason` column."""

    STOP = "stop"  # a stop token
    LENGTH = "length"  # --max-new-tokens reached
    LOOP = "loop"  # endless repetition, stopped early


class Verdict(StrEnum):
    """What a caption's text looks like; the `verdict` column."""

    OK = "ok"
    TRUNCATED = "truncated"
    REPEATED = "repeated"
    DEGENERATE = "degenerate"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of the manifest: an image to caption.

    Attributes:
        index: place in the whole job, from 0; the order of the output.
        id: the name of the row in the output.
        source: absolute path of the file that it comes from.
        row: row inside the source; 0 for an image file.
        image: where the encoded image lies; None: the manifest's cell is null.
        failure: why the manifest has no image for the row, if it is more than a null cell.
    """

    index: int
    id: str
    source: str
    row: int
    image: ImageRef | None = None
    failure: tuple[ErrorKind, str] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A unit of work: an image, what is asked about it, and how the answers are written.

    Attributes:
        row: the image.
        prompts: what is asked; one caption for each.
        sampling: how the tokens of the captions are chosen.
        attempt: which time the row is captioned, from 1.
    """

    row: ImageRow
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    attempt: int = 1

    @property
    def index(self) -> int:
        """The row's `ImageRow.index`."""
        return self.row.index

    @property
    def caption_key(self) -> str | None:
        """What decides the captions beside the image's bytes; None where equal images have no equal captions."""
        return caption_key(self.prompts, self.sampling)

    def without_image(self) -> "Request":
        """The same without the encoded image, which may take megabytes."""
        return replace(self, row=replace(self.row, image=None, failure=None))


@dataclass(frozen=True, slots=True)
class Patches:
    """A decoded, resized image cut into patches.

    Attributes:
        index: the row's `ImageRow.index`.
        values: [P, C·t·p·p] float32, normalised, in the order of the merge blocks.
        grid: patches down and across (P = grid[0] · grid[1]), both multiples of the merge size.
        width: pixels of the image as a person sees it (orientation applied), before the resize.
        height: the same, down.
        sha256: hex digest of the encoded bytes.
        read_ms: time to read, decode, resize and cut.
    """

    index: int
    values: Float32Array
    grid: tuple[int, int]
    width: int
    height: int
    sha256: str
    read_ms: float


@dataclass(frozen=True, slots=True)
class Features:
    """What the vision encoder saw in one image.

    Attributes:
        index: the row's `ImageRow.index`.
        embeds: [T, H] float32, takes the place of the image's token embeddings.
        deepstack: [D, T, H] float32, added to the decoder's hidden state after its first D layers.
        grid: visual tokens down and across (T = grid[0] · grid[1]).
        width: as in `Patches`.
        height: as in `Patches`.
        sha256: as in `Patches`.
        read_ms: as in `Patches`.
        vision_ms: the image's share of the encoder's time.
    """

    index: int
    embeds: Float32Array
    deepstack: Float32Array
    grid: tuple[int, int]
    width: int
    height: int
    sha256: str
    read_ms: float
    vision_ms: float

    @property
    def nbytes(self) -> int:
        """Bytes the two arrays hold: what the feature queue counts."""
        return self.embeds.nbytes + self.deepstack.nbytes


@dataclass(frozen=True, slots=True)
class Caption:
    """What the decoder wrote for one image and one prompt.

    Attributes:
        index: the row's `ImageRow.index`.
        token_ids: new tokens without the stop token, those of the thinking among them.
        text: the caption, special tokens and thinking left out and white space trimmed.
        finish_reason: why decoding ended.
        verdict: what the text looks like.
        prompt_tokens: tokens of the prompt, visual tokens included.
        visual_tokens: tokens of the image.
        prefill_ms: time of this row's prefill.
        decode_ms: from the end of the prefill to the last token.
        thinking: what the model thought before the caption; None where it did not.
        prompt: which of the prompts it answers, from 0.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    verdict: Verdict
    prompt_tokens: int
    visual_tokens: int
    prefill_ms: float
    decode_ms: float
    thinking: str | None = None
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one row has no caption."""

    index: int
    kind: ErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The image of a row is, byte for byte, that of another row, whose outcome is this row's too.

    Attributes:
        index: the row's `ImageRow.index`.
        of: index of the row that had the image first.
        read_ms: time to read this row's bytes.
    """

    index: int
    of: int
    read_ms: float


@dataclass(frozen=True, slots=True)
class PromptColumns:
    """The output columns that each prompt has of its own; the field names are theirs without the prompt's name."""

    caption: str | None = None
    thinking: str | None = None
    verdict: Verdict | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One output row; the field names are the column names of a part file, in this order.

    Fields that are also those of `PromptColumns` are the first prompt's; `extra_prompts` holds those of the others;
    it is empty in a failed row.
    """

    id: str
    source: str
    row: int
    caption: str | None = None
    thinking: str | None = None
    status: Status = Status.OK
    verdict: Verdict | None = None
    finish_reason: FinishReason | None = None
    error_kind: ErrorKind | None = None
    error_message: str | None = None
    attempts: int = 1
    prompt_tokens: int | None = None
    visual_tokens: int | None = None
    new_tokens: int | None = None
    width: int | None = None
    height: int | None = None
    image_sha256: str | None = None
    read_ms: float | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    extra_prompts: tuple[PromptColumns, ...] = ()

    @property
    def answers(self) -> "tuple[CaptionRow | PromptColumns, ...]":
        """What holds the columns of each prompt, in their order."""
        return (self, *self.extra_prompts)

    @property
    def is_ok(self) -> bool:
        """Whether there are captions, and all of them are as captions should be."""
        return self.status is Status.OK and all(answer.verdict is Verdict.OK for answer in self.answers)

    @property
    def new_tokens_of_all(self) -> int:
        """New tokens of all prompts; 0 in a failed row."""
        return sum(answer.new_tokens or 0 for answer in self.answers)


_ENUMS: dict[str, type[StrEnum]] = {
    "status": Status,
    "verdict": Verdict,
    "finish_reason": FinishReason,
    "error_kind": ErrorKind,
}


def with_enums(values: dict[str, Any]) -> dict[str, Any]:
    """Values by column as they were stored, those that are words of ours as what they stand for; changed in place."""
    for name, kind in _ENUMS.items():
        if values.get(name) is not None:  # journals of earlier versions hold nulls
            values[name] = kind(values[name])
    return values


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the image and vision stages learned about one image; times in milliseconds."""

    width: int
    height: int
    sha256: str
    read_ms: float
    vision_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one request: a caption for each prompt in order, a failure, or the word that it ends as another did.

    Attributes:
        request: what was submitted, without the encoded image.
        result: a duplicate comes after the row that had the image first.
        facts: None where the image was not read, or not read to its end.
    """

    request: Request
    result: tuple[Caption, ...] | Failure | Duplicate
    facts: ImageFacts | None = None

    @property
    def row(self) -> ImageRow:
        """The row of the request."""
        return self.request.row


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of one image.

    Attributes:
        index: the row's `ImageRow.index`.
        encoded: as they are in the file or cell.
        sha256: their hex digest.
        read_ms: time to read them.
    """

    index: int
    encoded: bytes
    sha256: str
    read_ms: float


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of a job. Once planned, a shard never changes."""

    seq: int
    first_row: int
    rows: int

    @property
    def span(self) -> tuple[int, int]:
        """First row and the row after the last."""
        return self.first_row, self.first_row + self.rows
