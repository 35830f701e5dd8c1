"""Owns the decoder worker: keeps the slots of one decoder full."""

import time
from multiprocessing.connection import Connection

from batchcap.bundle import Bundle
from batchcap.decoder.scheduler import Decoder, DecoderPlacement
from batchcap.engines.messages import Busy, DecoderSpec, DecodeWork, Inbox
from batchcap.errors import ErrorKind
from batchcap.prompt import PromptTemplate
from batchcap.records import Failure


class DecoderWorker:
    """Turns features into captions, as many at a time as there are slots."""

    def __init__(self, spec: DecoderSpec, connection: Connection) -> None:
        bundle = Bundle.load_again(spec.bundle_folder, spec.bundle_id)
        prompts = PromptTemplate.all_from_bundle(bundle, spec.generation.prompts)
        placement = DecoderPlacement(slots=spec.slots, threads=spec.threads, max_visual_tokens=spec.max_visual_tokens)
        self._connection = connection
        self._decoder = Decoder(bundle, prompts, spec.generation, placement)

    def run(self, inbox: Inbox) -> None:
        """Work until the coordinator goes away (the inbox ends the process then)."""
        while True:
            self._fill(inbox)
            started = time.perf_counter()
            captions = self._decoder.step()
            self._connection.send(Busy("decode", time.perf_counter() - started))
            for caption in captions:
                self._connection.send(caption)

    def _fill(self, inbox: Inbox) -> None:
        """Give every free slot a row that is waiting; with no row at work, wait for one."""
        while self._decoder.free_slots:
            work = inbox.get_nowait() if self._decoder.active else inbox.get()
            if work is None:
                return
            started = time.perf_counter()
            self._admit(work)
            self._connection.send(Busy("prefill", time.perf_counter() - started))

    def _admit(self, work: DecodeWork) -> None:
        try:
            self._decoder.admit(work.features, work.row_id)
        except Exception as error:  # a worker's edge: one row must not end the job at every start anew
            # That the decoder itself works has been seen when its row tile was measured. Lack of memory is not the
            # row's fault; ONNX Runtime has no class of its own for it.
            if isinstance(error, MemoryError) or "alloc" in str(error):
                raise
            message = f"{type(error).__name__}: {error}"
            self._connection.send(Failure(work.features.index, ErrorKind.INTERNAL, message))
