"""llama.cpp's multimodal library (mtmd) through llama-cpp-python's ctypes: so many slots, filled anew as they get free.

What llama.cpp's server does with images, without HTTP: an image is encoded, its prompt goes alone through the
decoder into the slot's sequence, and one token of every filled slot is decoded at a time.

usage: python -m peers.run_llama_cpp TASK.json FOLDER   (with text.gguf and mmproj.gguf)
"""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp as llama
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

from peers.protocol import CHAT, DECODE, PREFILL, READ, TOKEN_SIDE_PX, VISION, Outcome, Stopwatch, Task, serve, versions

CONTEXT_BESIDE_THE_IMAGE = 128
TOKEN_AREA_PX = TOKEN_SIDE_PX**2
BATCH_TOKENS = 512
TEXT_MODEL, VISION_MODEL = "text.gguf", "mmproj.gguf"


@dataclass(slots=True)
class Slot:
    """A caption in work: the sequence's next position, its last token, and how many are still to come."""

    sequence: int
    position: int
    token: int
    left: int


class Captioner:
    """Both models, the slots' cache, and a stopwatch on the stages."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.clock = Stopwatch()
        self.new_tokens = self.visual_tokens = 0
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(str(folder / TEXT_MODEL).encode(), llama.llama_model_default_params())
        self.context = llama.llama_init_from_model(model, self._context_parameters())
        self.vision = mtmd.mtmd_init_from_file(str(folder / VISION_MODEL).encode(), model, self._vision_parameters())
        if not (model and self.context and self.vision):
            raise RuntimeError(f"llama.cpp could not load the models in {folder}")
        self.vocabulary_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.batch = llama.llama_batch_init(task.sequences, 0, 1)

    def _context_parameters(self) -> llama.llama_context_params:
        task, parameters = self.task, llama.llama_context_default_params()
        length = task.max_pixels // TOKEN_AREA_PX + task.new_tokens + CONTEXT_BESIDE_THE_IMAGE
        parameters.n_ctx = task.sequences * length
        parameters.n_seq_max = task.sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_threads = parameters.n_threads_batch = task.threads
        parameters.kv_unified = False  # every sequence attends to its own part of the cache only
        return parameters

    def _vision_parameters(self) -> mtmd.mtmd_context_params:
        parameters = mtmd.mtmd_context_params_default()
        parameters.use_gpu = False
        parameters.n_threads = self.task.threads
        parameters.image_min_tokens = self.task.min_pixels // TOKEN_AREA_PX
        parameters.image_max_tokens = self.task.max_pixels // TOKEN_AREA_PX
        return parameters

    def caption(self, paths: list[str], new_tokens: int) -> None:
        """Caption the images with all slots."""
        waiting = iter(paths)
        free = list(range(self.task.sequences))
        slots: list[Slot] = []
        while True:
            while free and (path := next(waiting, None)):
                slots.append(self._admit(path, free.pop(), new_tokens))
            if not slots:
                return
            with self.clock.time(DECODE):
                self._step(slots)
            for slot in [slot for slot in slots if not slot.left]:
                llama.llama_memory_seq_rm(llama.llama_get_memory(self.context), slot.sequence, -1, -1)
                slots.remove(slot)
                free.append(slot.sequence)

    def _admit(self, path: str, sequence: int, new_tokens: int) -> Slot:
        """Encode the image and put its prompt through the decoder; the first token comes out of that."""
        position = llama.llama_pos(0)
        with self._chunks(path) as chunks:
            count = mtmd.mtmd_input_chunks_size(chunks)
            for number in range(count):
                chunk = mtmd.mtmd_input_chunks_get(chunks, number)
                self._prefill(chunk, sequence, position, with_logits=number == count - 1)
        self.new_tokens += 1
        return Slot(sequence, position.value, self._likeliest(-1), new_tokens - 1)

    @contextmanager
    def _chunks(self, path: str) -> Iterator[int]:
        """The prompt in chunks of text and image, read, resized and cut."""
        placeholder = False  # an image of the right size without its pixels
        with self.clock.time(READ):
            bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.vision, path.encode(), placeholder)
            chunks = mtmd.mtmd_input_chunks_init()
            marker = mtmd.mtmd_default_marker().decode()
            prompt = CHAT.format(image=marker, prompt=self.task.prompt).encode()
            text = mtmd.mtmd_input_text(text=prompt, text_len=len(prompt), add_special=False, parse_special=True)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            _require(mtmd.mtmd_tokenize(self.vision, chunks, ctypes.byref(text), bitmaps, 1), path)
        try:
            yield chunks
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _prefill(self, chunk: int, sequence: int, position: ctypes.c_int32, *, with_logits: bool) -> None:
        """Put one chunk through the decoder; `position` moves behind it."""
        place = (position.value, sequence, BATCH_TOKENS)
        next_position = ctypes.byref(position)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            with self.clock.time(PREFILL):
                failed = mtmd.mtmd_helper_eval_chunk_single(
                    self.vision, self.context, chunk, *place, with_logits, next_position
                )
            return _require(failed, "text")
        self.visual_tokens += mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        with self.clock.time(VISION):
            _require(mtmd.mtmd_encode_chunk(self.vision, chunk), "image")
        features, no_callback = mtmd.mtmd_get_output_embd(self.vision), mtmd.mtmd_helper_post_decode_callback()
        with self.clock.time(PREFILL):
            failed = mtmd.mtmd_helper_decode_image_chunk(
                self.vision, self.context, chunk, features, *place, next_position, no_callback, None
            )
        return _require(failed, "image")

    def _step(self, slots: list[Slot]) -> None:
        """One more token for every slot."""
        batch = self.batch
        batch.n_tokens = len(slots)
        for row, slot in enumerate(slots):
            batch.token[row], batch.pos[row] = slot.token, slot.position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot.sequence
            batch.logits[row] = True
        _require(llama.llama_decode(self.context, batch), "step")
        for row, slot in enumerate(slots):
            slot.token = self._likeliest(row)
            slot.position += 1
            slot.left -= 1
        self.new_tokens += len(slots)

    def _likeliest(self, row: int) -> int:
        logits = llama.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary_size,)).argmax())


def _require(failed: int, what: str) -> None:
    if failed:
        raise RuntimeError(f"llama.cpp ended with {failed} at the {what}")


def run(task: Task, folder: Path, options: list[str]) -> Outcome:
    if options:
        raise SystemExit(f"unknown options: {' '.join(options)}")
    captioner = Captioner(task, folder)
    captioner.caption(task.images[:1], 2)
    captioner.clock.seconds.clear()
    captioner.new_tokens = captioner.visual_tokens = 0
    started_s = time.perf_counter()
    captioner.caption(task.images, task.new_tokens)
    return Outcome(
        images=len(task.images),
        new_tokens=captioner.new_tokens,
        visual_tokens=captioner.visual_tokens,
        wall_s=time.perf_counter() - started_s,
        stage_s=captioner.clock.seconds,
        precision="Q4_0 (head Q6_K), vision F16",
        versions=versions("llama-cpp-python"),
    )


if __name__ == "__main__":
    serve(run)
