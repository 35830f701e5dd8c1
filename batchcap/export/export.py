"""Owns the making of a bundle: every part in turn, checked, described, and moved into place as a whole."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchcap import __version__
from batchcap.config import DEFAULT_PROMPT, VisionDtype
from batchcap.core.errors import BatchcapError, BundleError, CheckpointError, UsageError
from batchcap.export.checkpoint.chat_template import chat_template
from batchcap.export.checkpoint.checkpoint import Checkpoint, open_checkpoint, weights_sha256
from batchcap.export.checkpoint.configuration import CONFIG_FILE
from batchcap.export.checkpoint.matrix_names import matrix_name
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.checkpoint.prequantized import require_unquantized, stored_facts
from batchcap.export.checkpoint.quantize import Rows
from batchcap.export.checkpoint.scaling import scaled_tensors, write_scales
from batchcap.export.graph.check import check_decoder, check_embeddings, check_encoder, decade_above
from batchcap.export.graph.decoder import draw_decoder, fill_decoder
from batchcap.export.graph.vision_graph import write_vision_graph, write_vision_graph_int8
from batchcap.export.quality.images import ImageChoice, require_inputs
from batchcap.export.scratch import put_in_place, require_space, scratch_folder
from batchcap.model.bundle import (
    BUNDLE_FILE,
    CHAT_TEMPLATE_FILE,
    DECODER_FILE,
    EMBEDDINGS_FILE,
    FORMAT_VERSION,
    ROTARY_FILE,
    TOKENIZER_FILE,
    VISION_FILE,
    VISION_GRAPH_FILE,
    VISION_INT8_FILE,
    Bundle,
    EmbeddingTable,
    bundle_id,
    geometry_to_dict,
    sha256_of,
)
from batchcap.model.prompt import PromptTemplate
from batchcap.model.stored_json import LFS_POINTER, LFS_REMEDY, read_json
from batchcap.model.tensors import VISION, embedding_tensor, read_file, vision_tensors, write_npy, write_safetensors

if TYPE_CHECKING:
    from batchcap.export.search.precision_search import Search  # loads torch and transformers

log = logging.getLogger(__name__)

# Files of the checkpoint that go into the bundle unchanged, where they are there.
PROCESSOR_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
LIBRARIES = ("onnxruntime", "onnxruntime-genai", "transformers", "torch")
# The comparison with transformers holds the whole checkpoint in float32 once more: only for small ones.
REFERENCE_MAX_BYTES = 1 << 30
_SMALL_FILES_BYTES = 64 << 20
REFERENCE_TOLERANCE = 1e-3  # as a part of the largest logit; float32 rounding gives about 1e-6


def export_bundle(
    checkpoint: str,
    output: Path,
    options: ExportOptions,
    *,
    calibrate: ImageChoice | None = None,
    search: "Search | None" = None,
    overwrite: bool = False,
) -> Bundle:
    """Make a bundle of a checkpoint.

    The bundle appears at `output` when it is whole, or not at all. The same checkpoint with the same options, images
    and library versions gives the same bytes.

    Args:
        checkpoint: folder in Hugging Face layout, or a name on the hub where there is a network.
        output: folder to make.
        options: precision, block size, rounding, context.
        calibrate: images by which the matrices are scaled before they are rounded; None: they are not scaled.
        search: choose the decoder by measurement; of the options only the context counts then.
        overwrite: replace a bundle that is there.

    Raises:
        CheckpointError: the checkpoint is missing, broken, or not a dense Qwen3-VL.
        UsageError: `output` exists and may not be replaced, the context is longer than the checkpoint's, no image
            can be read, or no decoder of the search is near enough.
        LockedError: another export to `output` is at work.
        BatchcapError: the disk is full or can't be written.
    """
    if calibrate is not None and options.precision is Precision.FP32:
        raise UsageError("--calibrate improves rounding, but --precision fp32 does not round: leave one of them out")
    _require_free(output, overwrite=overwrite)
    opened = open_checkpoint(checkpoint)
    _require_context(opened, options.context)
    _require_images(opened, calibrate, search)
    try:
        with scratch_folder(output) as scratch:
            require_space(scratch, _working_bytes(opened, options, searching=search is not None))
            folder = scratch / "bundle"
            folder.mkdir()
            write_parts(opened, folder)
            _describe(opened, *write_decoder(opened, options, folder, calibrate, search), folder)
            _sync(folder)
            put_in_place(folder, output)
            _sync_folder(output.parent)
    except OSError as error:
        raise BatchcapError(
            f"can't write the bundle at {output} ({error}): free space or choose another --output"
        ) from None
    return Bundle.load(output, verify=False)


def export_key(checkpoint: Path, options: ExportOptions) -> str:
    """Digest of all that decides the bytes of a bundle, for a cache of bundles."""
    config = read_json(checkpoint / CONFIG_FILE)
    content = [__version__, FORMAT_VERSION, weights_sha256(checkpoint), config, options.precision_facts()]
    text = json.dumps([*content, options.context, _library_versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_free(output: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(output):  # a link to nowhere is in the way, too
        return
    if not (output / BUNDLE_FILE).exists():
        raise UsageError(f"{output} exists and is not a bundle: choose another --output")
    if not overwrite:
        raise UsageError(f"there is a bundle at {output} already: pass --overwrite to replace it")


def _require_context(checkpoint: Checkpoint, context: int) -> None:
    """More positions than a model was made for give nonsense, and far too many fill the memory."""
    known = checkpoint.config["text_config"].get("max_position_embeddings")
    if isinstance(known, int) and context > known:
        raise UsageError(f"--context is {context}, but the checkpoint supports {known} positions: choose at most that")


def _require_images(checkpoint: Checkpoint, calibrate: ImageChoice | None, search: "Search | None") -> None:
    """Where images decide the rounding, they must be there, and there must be something to round."""
    images = calibrate if search is None else search.images
    if images is not None:
        require_unquantized(checkpoint.tensors, "--calibrate" if search is None else "--auto")
        require_inputs(images)


def _working_bytes(checkpoint: Checkpoint, options: ExportOptions, *, searching: bool) -> int:
    """Room that an export needs on the disk: the bundle, and where it searches a second decoder."""
    if searching:
        options = dataclasses.replace(options, precision=Precision.INT8)
    copied = [tensor for _name, tensor in vision_tensors(checkpoint.tensors)] + [embedding_tensor(checkpoint.tensors)]
    layers = checkpoint.geometry.text.layers
    decoder_bits = sum(
        # Beside the bits themselves a scale and a zero point for each block of 32.
        math.prod(tensor.shape) * (options.rounding(matrix_name(name), layers).bits + 2)
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith(VISION)
    )
    return (1 + searching) * decoder_bits // 8 + sum(tensor.nbytes for tensor in copied) + _SMALL_FILES_BYTES


def write_decoder(
    checkpoint: Checkpoint,
    options: ExportOptions,
    folder: Path,
    calibrate: ImageChoice | None,
    search: "Search | None",
) -> tuple[ExportOptions, dict[str, Any]]:
    """Make the decoder of a bundle whose other parts are there.

    Returns:
        The options it was made with, and what `bundle.json` says of its precision.
    """
    unfinished = _unfinished(checkpoint, folder, options.context)
    with tempfile.TemporaryDirectory(prefix="drawing-", dir=folder.parent) as scratch:
        drawing = draw_decoder(checkpoint, options.context, Path(scratch))
        if search is not None:
            from batchcap.export.search.precision_search import choose_decoder  # noqa: PLC0415 - loads torch and transformers

            with tempfile.TemporaryDirectory(prefix="trials-", dir=folder.parent) as trials:
                return choose_decoder(unfinished, checkpoint, drawing, search, Path(trials))
        facts = options.precision_facts()
        if options.precision is not Precision.FP32:
            facts |= stored_facts(checkpoint.tensors)
        tensors: Mapping[str, Rows] = checkpoint.tensors
        if calibrate is not None:
            from batchcap.export.calibrate import calibration  # noqa: PLC0415 - loads torch and transformers

            found = calibration.calibrate(unfinished, checkpoint, drawing, options, calibrate)
            tensors = scaled_tensors(tensors, found.scales, checkpoint.geometry.text)
            facts["awq"] = found.facts
        fill_decoder(drawing, tensors, options, unfinished.decoder_path.parent)
        if calibrate is not None:
            write_scales(folder, found.scales)
    return options, facts


def _unfinished(checkpoint: Checkpoint, folder: Path, context: int = 0) -> Bundle:
    """The bundle in a folder that lacks its description, and maybe more."""
    return Bundle(folder, "", checkpoint.geometry, context, "", checkpoint.name)


def write_parts(checkpoint: Checkpoint, folder: Path) -> None:
    """Make every part of a bundle but the decoder and the description."""
    log.info("copying vision weights, token embeddings and processor files of %s", checkpoint.name)
    _copy_processor_files(checkpoint.folder, folder)
    _require_prompt(checkpoint, _unfinished(checkpoint, folder))
    (folder / VISION_FILE).parent.mkdir()
    write_safetensors(folder / VISION_FILE, vision_tensors(checkpoint.tensors))
    _write_vision_graphs(checkpoint, folder)
    write_npy(folder / EMBEDDINGS_FILE, embedding_tensor(checkpoint.tensors))
    check_embeddings(_unfinished(checkpoint, folder))


def _write_vision_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """The tower for ONNX Runtime, checked, and the rotary table that both backends read."""
    from batchcap.vision.rotary import rotary_table  # noqa: PLC0415 - loads torch

    log.info("building the vision graphs")
    vision = checkpoint.geometry.vision
    tensors = read_file(folder / VISION_FILE)
    np.save(folder / ROTARY_FILE, rotary_table(vision.head_dim))
    unfinished = _unfinished(checkpoint, folder)
    write_vision_graph(folder / VISION_GRAPH_FILE, vision, tensors)
    check_encoder(unfinished, VisionDtype.FP32)
    write_vision_graph_int8(folder / VISION_INT8_FILE, vision, tensors)
    check_encoder(unfinished, VisionDtype.INT8)


def _copy_processor_files(source: Path, folder: Path) -> None:
    if not (source / TOKENIZER_FILE).exists():
        raise CheckpointError(
            f"{source / TOKENIZER_FILE} is missing: the checkpoint must have its fast tokenizer. Copy the file "
            "from the model that was trained, or let transformers write it (`AutoTokenizer`, `save_pretrained`)"
        )
    for name in (TOKENIZER_FILE, *PROCESSOR_FILES):
        if (source / name).exists():
            (folder / name).write_bytes(_content(source / name))
    (folder / CHAT_TEMPLATE_FILE).write_text(chat_template(source), encoding="utf-8")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't read {path} ({error.strerror}): copy the checkpoint again") from None
    if content.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} {LFS_REMEDY}")
    return content


def _require_prompt(checkpoint: Checkpoint, unfinished: Bundle) -> None:
    """A tokenizer or a template of another model would show only when the first image is captioned."""
    try:
        prompt = PromptTemplate.from_bundle(unfinished, DEFAULT_PROMPT)
    except BundleError as error:
        said = str(error).replace(str(unfinished.folder), str(checkpoint.folder))
        raise CheckpointError(f"tokenizer, chat template and config.json don't fit together: {said}") from None
    vocabulary = checkpoint.geometry.text.vocab_size
    if max(prompt.prefix_ids + prompt.suffix_ids) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer gives ids of {vocabulary} or more, but the model has only {vocabulary} tokens: "
            f"{checkpoint.folder / TOKENIZER_FILE} belongs to another model"
        )


def _describe(checkpoint: Checkpoint, options: ExportOptions, precision: dict[str, Any], folder: Path) -> None:
    """Check the decoder and write bundle.json."""
    log.info("checking the decoder and the files")
    check: dict[str, float] = check_decoder(folder / DECODER_FILE, checkpoint.geometry, options.precision).to_dict()
    whole = not stored_facts(checkpoint.tensors)  # transformers reads few bits only with more packages
    if options.precision is Precision.FP32 and whole and checkpoint.nbytes <= REFERENCE_MAX_BYTES:
        check["reference_difference"] = _reference_difference(checkpoint, folder)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": {"name": checkpoint.name, "weights_sha256": checkpoint.weights_sha256()},
        "geometry": geometry_to_dict(checkpoint.geometry),
        "context": options.context,
        "precision": precision,
        "versions": {"batchcap": __version__, **_library_versions()},
        "check": check,
        "files": files,
    }
    text = json.dumps({"id": bundle_id(content), **content}, indent=2, ensure_ascii=False)
    (folder / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")


def _reference_difference(checkpoint: Checkpoint, folder: Path) -> float:
    """Largest difference of a logit to transformers.

    Raises:
        CheckpointError: it is more than rounding.
    """
    from batchcap.export.graph.parity import compare_with_transformers  # noqa: PLC0415 - loads torch and transformers

    embeddings = EmbeddingTable(folder / EMBEDDINGS_FILE)
    found = compare_with_transformers(checkpoint.folder, folder / DECODER_FILE, embeddings, checkpoint.geometry)
    for parity in found:
        if parity.difference > REFERENCE_TOLERANCE * parity.scale:
            raise CheckpointError(
                f"the exported decoder's logits differ from those of transformers by {parity.difference:.2g} "
                f"(largest logit {parity.scale:.2g}): this kind of checkpoint can't be exported exactly"
            )
    return decade_above(max(parity.difference for parity in found))


def _library_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def _sync(folder: Path) -> None:
    """Force every file and folder to the disk, so that the rename never shows what a power cut would empty."""
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
