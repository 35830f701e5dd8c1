"""Owns the decoder worker: keeps the slots of one decoder full."""

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from batchcap.bundle import Bundle
from batchcap.decoder.kept import KeptDecoder, open_decoder
from batchcap.decoder.scheduler import Decoder, DecoderPlacement
from batchcap.engines.messages import Busy, DecoderSpec, DecodeWork, Inbox, lacks_memory
from batchcap.errors import ErrorKind
from batchcap.prompt import PromptTemplate, load_tokenizer
from batchcap.records import Caption, Failure


class DecoderWorker:
    """Turns features into captions, as many at a time as there are slots."""

    def __init__(self, spec: DecoderSpec, connection: Connection) -> None:
        bundle = Bundle.load_again(spec.bundle_folder, spec.bundle_id)
        with ThreadPoolExecutor(1) as beside:  # the tokenizer takes half a second, and so do the weights
            opening = beside.submit(
                open_decoder, bundle, spec.threads, KeptDecoder.of(bundle), share_weights=spec.share_weights
            )
            tokenizer = load_tokenizer(bundle)
            prompts = PromptTemplate.all_from_bundle(bundle, spec.generation.prompts, tokenizer)
        placement = DecoderPlacement(slots=spec.slots, threads=spec.threads, max_visual_tokens=spec.max_visual_tokens)
        self._connection = connection
        self._prompts = len(prompts)
        self._last_index = -1
        self._answers: dict[int, dict[int, Caption]] = {}  # captions of rows whose other prompts are still at work
        self._decoder = Decoder(bundle, prompts, spec.generation, placement, opening.result(), tokenizer)

    def run(self, inbox: Inbox) -> None:
        """Work until the coordinator goes away (the inbox ends the process then)."""
        while True:
            self._fill(inbox)
            started = time.perf_counter()
            captions = self._decoder.step()
            self._connection.send(Busy("decode", time.perf_counter() - started))
            for caption in captions:
                self._gather(caption)

    def _gather(self, caption: Caption) -> None:
        """Send the captions of a row when the last of them is there."""
        answers = self._answers.setdefault(caption.index, {})
        answers[caption.prompt] = caption
        if len(answers) == self._prompts:
            del self._answers[caption.index]
            self._connection.send(tuple(answers[place] for place in range(self._prompts)))

    def _fill(self, inbox: Inbox) -> None:
        """Give every free slot a prompt or a row that is waiting; with nothing at work, wait for a row."""
        while self._decoder.can_go_on or self._decoder.free_slots:
            work = None
            if not self._decoder.can_go_on:
                work = inbox.get_nowait() if self._decoder.active else inbox.get()
                if work is None:
                    return
            started = time.perf_counter()
            self._prefill(work)
            self._connection.send(Busy("prefill", time.perf_counter() - started))

    def _prefill(self, work: DecodeWork | None) -> None:
        """Take in a row; with None, go on with the prompts of the last one."""
        try:
            if work is None:
                self._decoder.go_on()
            else:
                self._last_index = work.features.index
                self._decoder.admit(work.features, work.row_id)
        except Exception as error:  # a worker's edge: one row must not end the job at every start anew
            # That the decoder itself works has been seen when its row tile was measured. Lack of memory is not the
            # row's fault.
            if lacks_memory(error):
                raise
            message = f"{type(error).__name__}: {error}"
            self._decoder.give_up(self._last_index)
            self._answers.pop(self._last_index, None)
            self._connection.send(Failure(self._last_index, ErrorKind.INTERNAL, message))
