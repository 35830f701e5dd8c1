"""Owns the decoder worker: one model, and the lanes that work with it side by side.

Threads that share a product wait for one another at its end, spinning; lanes have nothing to wait for, also where the
vision encoder takes a core from one of them. Measured at 2B on two cores, two lanes of one thread each and half of the
slots instead of two threads a run: prefill 1.04 to 1.22 times as fast (W8A8; INT4 1.09), steps of 16 rows 0.89 times
(INT4 1.09), of 32 rows 1.02, of 48 rows 1.07.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection

from batchcap.core.machine import session_threads
from batchcap.decoder.captions import CaptionReader
from batchcap.decoder.invariance import warn_if_a_split_shows
from batchcap.decoder.load import open_decoder
from batchcap.decoder.packed_weights import PackedWeightsCache
from batchcap.decoder.prompt_inputs import PromptCache
from batchcap.decoder.requests import DecoderPlacement, SlotShape
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.engines.busy_flag import BusyFlag
from batchcap.engines.decoder_lane import DecoderLane
from batchcap.engines.messages import DecoderSpec, Inbox, send
from batchcap.engines.threads import run_until_first_failure
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import load_tokenizer

LANES = 2
# With more threads a step waits for memory rather than for products, and each lane would read all weights.
MAX_THREADS_IN_LANES = 4
# With fewer slots a lane's steps are of too few rows.
MIN_SLOTS_IN_LANES = 4


class DecoderWorker:
    """Turns features into captions, as many at a time as there are slots."""

    def __init__(self, spec: DecoderSpec, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        bundle = Bundle.load_again(spec.bundle_folder, spec.bundle_id)
        count = lane_count(spec.threads, spec.slots)
        threads = session_threads(spec.threads, count)
        with ThreadPoolExecutor(1) as beside:  # the tokenizer takes half a second, and so do the weights
            opening = beside.submit(
                open_decoder, bundle, threads, PackedWeightsCache.of(bundle), share_weights=spec.share_weights
            )
            tokenizer = load_tokenizer(bundle)
            prompts = PromptCache(bundle, tokenizer)
            usual = prompts.get(spec.generation.prompts)  # what can't be asked is refused before any row
        opened, sign = opening.result(), BusyFlag(spec.sign_file)
        shape = SlotShape.of(bundle, usual.templates, spec.generation.sampling, spec.max_visual_tokens)
        reader = CaptionReader(tokenizer)
        self.lanes: list[DecoderLane] = []
        for number in range(count):
            slots = (spec.slots + number) // count
            placement = DecoderPlacement(slots, threads, spec.max_visual_tokens)
            decoder = ContinuousBatcher(bundle, placement, shape, opened)
            self.lanes.append(DecoderLane(decoder, prompts, reader, self._send, sign, (number, count)))
        if shape.with_prefix_slot:
            warn_if_a_split_shows(opened.session, bundle.geometry, opened.batch_multiple)

    def _send(self, message: object) -> None:
        with self._sending:
            send(self._connection, message)

    def run(self, inbox: Inbox) -> None:
        """Work until the coordinator goes away (the inbox ends the process then)."""
        run_until_first_failure([partial(lane.run, inbox) for lane in self.lanes], self._sending)


def lane_count(threads: int, slots: int) -> int:
    """How many lanes a decoder with so many threads and slots has."""
    return LANES if LANES <= threads <= MAX_THREADS_IN_LANES and slots >= MIN_SLOTS_IN_LANES else 1
