"""Owns the loading of a bundle's decoder, with or without what earlier starts left."""

import ctypes
from dataclasses import dataclass

from batchcap.core.errors import load_error
from batchcap.decoder.invariance import find_batch_multiple
from batchcap.decoder.packed_weights import PackedWeightsCache
from batchcap.decoder.session import DecoderSession
from batchcap.model.bundle import Bundle


@dataclass(frozen=True, slots=True)
class OpenedDecoder:
    """A decoder's session, and the row tile that its batches are padded to."""

    session: DecoderSession
    batch_multiple: int


def open_decoder(
    bundle: Bundle, threads: int, kept: PackedWeightsCache | None = None, *, share_weights: bool = False
) -> OpenedDecoder:
    """Load a bundle's decoder.

    Args:
        bundle: the model.
        threads: threads of one run.
        kept: what earlier starts left, to be used and added to; None: nothing is.
        share_weights: whether to use packed weights that other processes use, too, and to make them first.

    Raises:
        BundleError: ONNX Runtime can't load the graph, or can't run it.
    """
    session = kept.shared_session(threads) if kept is not None and share_weights else None
    if session is None:
        session = DecoderSession(bundle.decoder_path, bundle.geometry, threads)
    _give_back_memory()
    try:
        tile = find_batch_multiple(session, bundle.geometry) if kept is None else kept.batch_multiple(session)
    except RuntimeError as error:  # the first runs of a graph that nobody has run here
        raise load_error(f"the decoder {bundle.decoder_path} does not run", error) from None
    return OpenedDecoder(session, tile)


def _give_back_memory() -> None:
    """Ask the C library (glibc) to return what loading has freed: measured 90 MiB of a 2B decoder's process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
