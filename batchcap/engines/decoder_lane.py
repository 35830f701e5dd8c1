"""Owns one lane of a decoder worker: keeps its slots full, step by step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from batchcap.core.errors import ErrorKind, lacks_memory
from batchcap.core.records import Caption, Failure
from batchcap.decoder.captions import CaptionReader
from batchcap.decoder.prompt_inputs import PromptCache, PromptSet
from batchcap.decoder.requests import DecodeRequest, WrittenTokens
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.engines.busy_flag import BusyFlag
from batchcap.engines.messages import DecodeWork, Inbox, StageTime

# So long after the last image a lane with free slots waits for the next one while the encoder is at work.
PATIENCE_S = 60.0
# How often it looks whether the encoder still is.
LOOK_S = 0.05


@dataclass(slots=True)
class _OpenRow:
    """A row at work, and the captions of those of its prompts that are done."""

    prompts: PromptSet
    captions: dict[int, Caption] = field(default_factory=dict)


class DecoderLane:
    """Turns features into captions with slots of its own.

    Args:
        decoder: the slots.
        prompts: renders what is asked of each image.
        reader: makes captions of what the decoder wrote.
        send: sends a message to the coordinator; for several threads.
        sign: up while more features are in the making.
        lane: which one it is of how many: a second of it is that part of a second of the worker's.
    """

    def __init__(
        self,
        decoder: ContinuousBatcher,
        prompts: PromptCache,
        reader: CaptionReader,
        send: Callable[[object], None],
        sign: BusyFlag,
        lane: tuple[int, int],
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._reader = reader
        self._send = send
        self._sign = sign
        self._number, self._lanes = lane
        self._last_index = -1
        self._patient_until_s = 0.0
        self._open: dict[int, _OpenRow] = {}

    def run(self, inbox: Inbox) -> None:
        """Work for ever."""
        while True:
            self._fill(inbox)
            started_s = time.perf_counter()
            finished = self._decoder.step()
            self._tell("decode", started_s)
            for written in finished:
                self._gather(written)

    def _tell(self, stage: str, since_s: float | None = None, *, is_idle: bool = False) -> None:
        """Say what was done since then; None: nothing, the lane only shows that it is alive."""
        seconds = 0.0 if since_s is None else time.perf_counter() - since_s
        self._send(StageTime(stage, seconds / self._lanes, self._number, is_idle=is_idle))

    def _gather(self, written: WrittenTokens) -> None:
        """Judge what was written, and send the captions of a row when the last of them is there."""
        row = self._open[written.index]
        opens_thinking = row.prompts.templates[written.prompt].opens_thinking
        row.captions[written.prompt] = self._reader.read(written, opens_thinking=opens_thinking)
        if len(row.captions) == len(row.prompts):
            del self._open[written.index]
            self._send(tuple(row.captions[number] for number in range(len(row.prompts))))

    def _fill(self, inbox: Inbox) -> None:
        """Give every free slot a prompt or a row that is waiting or about to come; with nothing at work, any row."""
        while self._decoder.can_go_on or self._decoder.free_slots:
            work = None
            if not self._decoder.can_go_on:
                work = self._next(inbox) if self._decoder.active else self._first(inbox)
                if work is None:
                    return
            started_s = time.perf_counter()
            self._prefill(work)
            self._tell("prefill", started_s)
            self._patient_until_s = time.monotonic() + PATIENCE_S

    def _next(self, inbox: Inbox) -> DecodeWork | None:
        """A row that waits or is about to come."""
        work: DecodeWork | None = inbox.get_within(0)
        while work is None and self._sign.is_set() and time.monotonic() < self._patient_until_s:
            work = inbox.get_within(LOOK_S)
            self._tell("decode")  # who waits is not silent
        return work

    def _first(self, inbox: Inbox) -> DecodeWork:
        """A row for a lane with nothing to do; waits for it."""
        work: DecodeWork | None = inbox.get_within(0)
        if work is None:
            self._tell("decode", is_idle=True)
            work = inbox.get()
        self._tell("prefill")  # from here on its silence counts, whatever the other lanes say
        return work

    def _prefill(self, work: DecodeWork | None) -> None:
        """Take in a row; with None, go on with the prompts of the last one."""
        try:
            if work is None:
                self._decoder.prefill_pending()
            else:
                self._add(work)
        except Exception as error:  # a worker's edge: one row must not end the job at every start
            # That the decoder itself works has been seen when its row tile was measured. Lack of memory is not the
            # row's fault.
            if lacks_memory(error):
                raise
            message = f"{type(error).__name__}: {error}"
            self._decoder.abort(self._last_index)
            self._open.pop(self._last_index, None)
            self._send(Failure(self._last_index, ErrorKind.INTERNAL, message))

    def _add(self, work: DecodeWork) -> None:
        request = work.request
        self._last_index = request.index
        prompts = self._prompts.get(request.prompts)
        self._open[request.index] = _OpenRow(prompts)
        self._decoder.add_request(DecodeRequest(request.row.id, work.features, prompts, request.sampling))
