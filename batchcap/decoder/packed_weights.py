"""Owns what a decoder's start leaves in the cache folder for the next: its row tile, and packed weights to be shared.

A session packs the weights for the kernels of its CPU into memory of its own. ONNX Runtime can save the graph with the
packed weights beside it; sessions that load it map them, so the kernel keeps one copy for all processes. Both depend on
the bundle, the CPU and ONNX Runtime alone, and are kept under all three.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from filelock import FileLock

from batchcap.core.atomic import sync, write_atomic
from batchcap.core.cache import cache_folder
from batchcap.core.errors import BatchcapError, UsageError
from batchcap.core.machine import MIB, cpu_flags, cpu_name, file_system
from batchcap.decoder.invariance import MAX_BATCH, SEED, TILES, find_batch_multiple
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.model.bundle import Bundle, sha256_of
from batchcap.model.geometry import Geometry

log = logging.getLogger(__name__)

FOLDER = "decoders"
GRAPH_FILE = "model.onnx"
ENTRY_FILE = "entry.json"
# A smaller decoder starts in no time, and its copies take no room worth a file.
MIN_BYTES = 100 * MIB
# The saved graph holds the weights as they were and packed: measured 2.1 times the bundle's with INT4 and with W8A8.
DISK_COPIES = 2.5
# A file there is in memory already.
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
# Of the comparison: a prompt goes through the kernels for many rows, a step through those for few.
PROMPT_TOKENS, STEP_ROWS = 37, 3


@dataclass(frozen=True, slots=True)
class MachineKey:
    """What a kept file holds for; another bundle, CPU or ONNX Runtime never uses it."""

    bundle_id: str
    cpu: str
    cpu_flags: str
    onnxruntime: str

    @classmethod
    def here(cls, bundle: Bundle) -> "MachineKey":
        """A bundle on this machine."""
        build = f"{onnxruntime.__version__}, {onnxruntime.get_build_info()}"
        return cls(bundle.id, cpu_name(), " ".join(sorted(cpu_flags())), build)

    @property
    def name(self) -> str:
        """Begins the names of its files."""
        machine = "\n".join((self.cpu, self.cpu_flags, self.onnxruntime))
        return f"{self.bundle_id[:16]}-{hashlib.sha256(machine.encode()).hexdigest()[:16]}"


class PackedWeightsCache:
    """What is kept of one bundle's decoder on this machine.

    Args:
        bundle: whose decoder.
        folder: where everything is kept; need not be there.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.key = MachineKey.here(bundle)
        self.packed_folder = folder / self.key.name
        self._tile_path = folder / f"{self.key.name}.json"
        # One at a time makes or removes anything; what a start that was killed leaves is always in the same place.
        self._lock = FileLock(folder / "lock")
        self._making = folder / "making"
        self._bundle = bundle
        self._folder = folder

    @classmethod
    def of(cls, bundle: Bundle) -> "PackedWeightsCache | None":
        """None where nothing is kept: the decoder is small, or nothing says where the cache folder is."""
        if decoder_bytes(bundle) < MIN_BYTES:
            return None
        try:
            return cls(bundle, cache_folder() / FOLDER)
        except UsageError:
            return None

    def batch_multiple(self, session: DecoderSession) -> int:
        """The decoder's row tile: measured at its first start (seconds with a large model), read at later ones.

        Measured at every start where the kernel does not say which CPU it is: a cache folder may serve several.
        """
        if not self.key.cpu_flags:
            return find_batch_multiple(session, self._bundle.geometry)
        try:
            tile = json.loads(self._tile_path.read_bytes())["row_tile"]
            if tile in TILES:
                return int(tile)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or broken: measured again
            pass
        tile = find_batch_multiple(session, self._bundle.geometry)
        if tile < MAX_BATCH:  # the largest may mean that none works, which every start is to warn of
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomic(self._tile_path, json.dumps({"row_tile": tile}).encode())
            except (OSError, BatchcapError) as error:
                log.debug("the row tile is not kept: %s", error)
        return tile

    def reason_unavailable(self) -> str | None:
        """Why packed weights can be neither found nor made, for a person; None where they can."""
        if self.is_whole():
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
            free_bytes = shutil.disk_usage(self._folder).free
        except OSError as error:
            return f"{self._folder} can't be written ({error.strerror})"
        needed_bytes = int(DISK_COPIES * decoder_bytes(self._bundle))
        if free_bytes < needed_bytes:
            return f"{self._folder} has {free_bytes // MIB} MiB free and {needed_bytes // MIB} are needed"
        if file_system(self._folder) in MEMORY_FILE_SYSTEMS:
            return f"{self._folder} is itself in memory"
        return None

    def is_whole(self) -> bool:
        """Whether the packed weights are there, of the right sizes, and made for this."""
        try:
            entry = self._entry()
            return entry["made_for"] == asdict(self.key) and all(
                (self.packed_folder / name).stat().st_size == file["bytes"] for name, file in entry["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def check(self) -> None:
        """Compare the packed weights with their sums, and remove them where they differ.

        Raises:
            OSError: they can't be read or removed.
        """
        if self.is_whole() and any(
            sha256_of(self.packed_folder / name) != file["sha256"] for name, file in self._entry()["files"].items()
        ):
            log.warning("the packed weights in %s are damaged: packing them again", self.packed_folder)
            with self._lock:
                shutil.rmtree(self.packed_folder)

    def shared_session(self, threads: int) -> DecoderSession | None:
        """A session on the packed weights, which are made first where they are not there; waits for who makes them.

        None where that fails, after a warning: the bundle's own graph gives the same numbers.
        """
        try:
            if not self.is_whole():
                with self._lock:
                    if not self.is_whole():
                        self._make(threads)
            graph = self.packed_folder / GRAPH_FILE
            return DecoderSession(graph, self._bundle.geometry, threads, packed=True)
        except (OSError, BatchcapError) as error:
            log.warning("this decoder keeps a copy of the weights of its own: %s", error)
            return None

    def _entry(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.packed_folder / ENTRY_FILE).read_bytes())
        return content

    def _make(self, threads: int) -> None:
        """Write the packed weights beside their place and move them there when they are right.

        Raises:
            OSError, BatchcapError: that failed; nothing is left.
        """
        making = self._making
        shutil.rmtree(making, ignore_errors=True)  # of a start that was killed
        making.mkdir()
        try:
            self._save(making / GRAPH_FILE, threads)
            files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in making.iterdir()}
            entry = {
                "made_for": asdict(self.key),
                "bundle_folder": str(self._bundle.folder.absolute()),
                "files": files,
            }
            (making / ENTRY_FILE).write_text(json.dumps(entry, indent=2))
            for path in making.iterdir():
                sync(path)
            shutil.rmtree(self.packed_folder, ignore_errors=True)  # not whole, or we would not be here
            making.rename(self.packed_folder)
            sync(self._folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        self._prune()

    def _save(self, graph: Path, threads: int) -> None:
        geometry = self._bundle.geometry
        own = DecoderSession(self._bundle.decoder_path, geometry, threads, save_packed=graph)
        packed = DecoderSession(graph, geometry, threads, packed=True)
        if probe(own, geometry) != probe(packed, geometry):
            raise BatchcapError("ONNX Runtime's packed weights give other numbers on this machine")

    def _prune(self) -> None:
        """Remove what the same bundle folder left on this CPU before: other contents, or another ONNX Runtime."""
        for path in self._folder.glob(f"*/{ENTRY_FILE}"):
            try:
                entry = json.loads(path.read_bytes())
                replaced = (
                    entry["bundle_folder"] == str(self._bundle.folder.absolute())
                    and entry["made_for"]["cpu"] == self.key.cpu
                    and path.parent != self.packed_folder
                )
            except (OSError, ValueError, KeyError, TypeError):  # not ours to judge
                continue
            if replaced:
                shutil.rmtree(path.parent, ignore_errors=True)
                path.parent.with_suffix(".json").unlink(missing_ok=True)


def decoder_bytes(bundle: Bundle) -> int:
    """Size of the decoder's graph and weights."""
    return sum(path.stat().st_size for path in bundle.decoder_path.parent.iterdir())


def shares_weights(bundle: Bundle, decoders: int) -> bool:
    """Whether so many decoders will share one copy of the weights, as far as can be told beforehand."""
    kept = PackedWeightsCache.of(bundle) if decoders > 1 else None
    return kept is not None and kept.reason_unavailable() is None


def prepare_sharing(bundle: Bundle) -> bool:
    """Whether several decoders are to share one copy of the weights; a line in the log says why not.

    What was packed before is compared with its sums, which takes a second or two with a large model.
    """
    kept = PackedWeightsCache.of(bundle)
    if kept is None:
        return False
    try:
        kept.check()
        reason_unavailable = kept.reason_unavailable()
    except OSError as error:
        reason_unavailable = str(error)
    if reason_unavailable is not None:
        log.info("each decoder keeps its own copy of the weights: %s", reason_unavailable)
    elif not kept.is_whole():
        log.info("packing the decoder's weights for this CPU, once, into %s", kept.packed_folder)
    return reason_unavailable is None


def probe(session: DecoderSession, geometry: Geometry) -> bytes:
    """The bits of the logits of a prompt and of a step after it, of random numbers."""
    random = np.random.default_rng(SEED)
    hidden, level_count = geometry.text.hidden_size, len(geometry.vision.deepstack_levels)
    slots = Slots(session, geometry, STEP_ROWS, PROMPT_TOKENS + 1, with_logits=True)
    positions = np.broadcast_to(np.arange(PROMPT_TOKENS), (3, PROMPT_TOKENS)).astype(np.int64)
    bits = b""
    for slot in range(STEP_ROWS):
        embeds = random.standard_normal((PROMPT_TOKENS, hidden), np.float32)
        features = random.standard_normal((level_count, PROMPT_TOKENS, hidden), np.float32)
        prefilled = slots.prefill(slot, embeds, positions, features).logits
        bits += b"" if prefilled is None else prefilled.tobytes()
    lengths = np.full(STEP_ROWS, PROMPT_TOKENS, np.int64)
    stepped = slots.step(STEP_ROWS, lengths, lengths, random.standard_normal((STEP_ROWS, hidden), np.float32)).logits
    return bits + (b"" if stepped is None else stepped.tobytes())
