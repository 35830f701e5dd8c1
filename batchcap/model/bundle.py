"""Owns the bundle: the folder that `export` makes and every job loads, checked before it is used."""

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from batchcap.core.errors import BundleError, NoBundleError
from batchcap.core.records import Float32Array, Int64Array
from batchcap.model.geometry import Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry

FORMAT_VERSION = 2
BUNDLE_FILE = "bundle.json"
DECODER_FILE = "decoder/model.onnx"
VISION_FILE = "vision/model.safetensors"
VISION_GRAPH_FILE = "vision/fp32.onnx"
VISION_INT8_FILE = "vision/int8.onnx"
ROTARY_FILE = "vision/rotary.npy"
EMBEDDINGS_FILE = "embeddings.npy"
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
_NEEDED = frozenset({DECODER_FILE, VISION_FILE, ROTARY_FILE, EMBEDDINGS_FILE, TOKENIZER_FILE, CHAT_TEMPLATE_FILE})
_PARTS = ("decoder", "vision")  # folders of graphs
_READ_BYTES = 1 << 22
_MOST = 2**31  # of any number in the geometry
_EXPORT_AGAIN = "export it again with `batchcap export CHECKPOINT --output BUNDLE`"

_Part = TypeVar("_Part", TextGeometry, VisionGeometry, ImageSettings, TokenIds)


class EmbeddingTable:
    """The token embeddings, memory-mapped: one copy in memory for all processes.

    Stored as [V, H]: float32, float16, or the upper 16 bits of float32 (bfloat16) as uint16.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._table = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:  # pickled ones among them: they may run any program
            raise BundleError(f"the token embeddings {path} can't be read ({error}): {_EXPORT_AGAIN}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens and numbers of each, [V, H]."""
        shape: tuple[int, ...] = self._table.shape
        return shape

    def lookup(self, token_ids: Int64Array) -> Float32Array:
        """Embeddings [..., H] float32 of token ids [...]; the expansion to float32 is exact."""
        rows = self._table[token_ids]
        if rows.dtype == np.uint16:
            expanded: Float32Array = (rows.astype(np.uint32) << 16).view(np.float32)
            return expanded
        return np.ascontiguousarray(rows, np.float32)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model ready to run.

    Attributes:
        folder: where it is.
        id: hex digest of everything that decides its captions.
        geometry: the model's shape.
        context: positions the decoder knows: longest prompt and caption together, in tokens.
        precision: weights of the decoder, as in `int4 block 128 rtn`.
        source: name of the checkpoint it was made from.
    """

    folder: Path
    id: str
    geometry: Geometry
    context: int
    precision: str
    source: str

    @property
    def named(self) -> dict[str, str]:
        """What names it in parts and summaries."""
        return {"id": self.id, "source": self.source, "precision": self.precision}

    @property
    def decoder_path(self) -> Path:
        """The decoder's graph; its weights lie beside it."""
        return self.folder / DECODER_FILE

    @property
    def vision_weights_path(self) -> Path:
        """The vision tower's weights, tensor names without `model.visual.`."""
        return self.folder / VISION_FILE

    @property
    def rotary_table_path(self) -> Path:
        """The vision tower's rotary table [2, positions, a / 4] float32."""
        return self.folder / ROTARY_FILE

    def vision_graph_path(self, *, int8: bool) -> Path:
        """The vision tower's graph for ONNX Runtime."""
        return self.folder / (VISION_INT8_FILE if int8 else VISION_GRAPH_FILE)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer of the checkpoint."""
        return self.folder / TOKENIZER_FILE

    @property
    def chat_template_path(self) -> Path:
        """The chat template of the checkpoint."""
        return self.folder / CHAT_TEMPLATE_FILE

    def embeddings(self) -> EmbeddingTable:
        """The token embeddings.

        Raises:
            BundleError: they can't be read, or are of another geometry.
        """
        table, text = EmbeddingTable(self.folder / EMBEDDINGS_FILE), self.geometry.text
        if table.shape != (text.vocab_size, text.hidden_size):
            raise BundleError(
                f"{self.folder / EMBEDDINGS_FILE} does not match {BUNDLE_FILE}: it has the shape {table.shape}, not "
                f"{(text.vocab_size, text.hidden_size)}: {_EXPORT_AGAIN}"
            )
        return table

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> "Bundle":
        """Read a bundle.

        Args:
            folder: the bundle.
            verify: compare every file with its checksum; sizes are compared in any case.

        Raises:
            NoBundleError: it is not there; `export.advice.load_named_bundle` says what is there instead.
            BundleError: it is not a bundle, of another format version, or a file is missing or changed.
        """
        folder = Path(folder)
        content = _read_description(folder)
        try:
            if content["id"] != bundle_id(content):
                raise BundleError(f"{folder / BUNDLE_FILE} was changed after the export: {_EXPORT_AGAIN}")
            _require_listed(folder, set(content["files"]))
            for name, expected in content["files"].items():
                _check_file(folder, name, expected, verify=verify)
            return cls(
                folder=folder,
                id=content["id"],
                geometry=_geometry(content["geometry"]),
                context=content["context"],
                precision=precision_text(content["precision"]),
                source=content["source"]["name"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BundleError(f"{folder / BUNDLE_FILE} is damaged ({error!r}): {_EXPORT_AGAIN}") from None

    @classmethod
    def load_again(cls, folder: str | Path, expected_id: str) -> "Bundle":
        """Read a bundle whose files were checked a moment ago.

        Raises:
            BundleError: as `load`; or another bundle has taken its place since.
        """
        bundle = cls.load(folder, verify=False)
        if bundle.id != expected_id:
            raise BundleError(f"the bundle {folder} was replaced while the job began: run the same command again")
        return bundle


def bundle_id(content: dict[str, Any]) -> str:
    """Hex digest of what decides the captions; the name of the source and the library versions do not."""
    deciding = {key: content[key] for key in ("geometry", "context", "files")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def precision_text(precision: dict[str, Any]) -> str:
    """The decoder's precision for a person."""
    if precision["bits"] == 32:
        return "fp32"
    if "activation_bits" in precision:
        text = "w8a8"  # as the kernel's integers are called; its weights use seven of their bits
    else:
        text = f"int{precision['bits']} block {precision['block_size']} {precision['algorithm']}"
    if precision.get("int8_matrices", "none") != "none":
        text += f", int8 {precision['int8_matrices']}"
    if "stored" in precision:
        stored = precision["stored"]
        return f"{stored['method']} int{stored['bits']} block {stored['block_size']}, others {text}"
    return text + ", awq" if "awq" in precision else text


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / BUNDLE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoBundleError(
            f"there is no bundle at {folder}; make one with `batchcap export CHECKPOINT --output "
            f"{shlex.quote(str(folder))}`"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file; --model wants a bundle, a folder made by `batchcap export`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"can't read {path} ({error}): {_EXPORT_AGAIN}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {version}, this batchcap reads {FORMAT_VERSION}: {_EXPORT_AGAIN}"
        )
    return content


def _require_listed(folder: Path, listed: set[str]) -> None:
    """A job must read nothing that has no checksum: a graph may name files beside it as the place of its weights."""
    outside = sorted(name for name in listed if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts)
    if outside:
        raise BundleError(f"{folder / BUNDLE_FILE} names {outside[0]!r}, which is not in the bundle: {_EXPORT_AGAIN}")
    there = {path.relative_to(folder).as_posix() for part in _PARTS for path in (folder / part).rglob("*")}
    lost = sorted(_NEEDED - listed)
    unknown = sorted(name for name in there - listed if not (folder / name).is_dir())
    if lost or unknown:
        raise BundleError(
            f"{folder / (lost or unknown)[0]} has no checksum in {BUNDLE_FILE}: "
            + (_EXPORT_AGAIN if lost else "remove it from the bundle, or export again")
        )


def _check_file(folder: Path, name: str, expected: dict[str, Any], *, verify: bool) -> None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise BundleError(f"{path} has {size} bytes instead of {expected['bytes']}: {_EXPORT_AGAIN}")
        if verify and sha256_of(path) != expected["sha256"]:
            raise BundleError(f"{path} is not what was exported (its checksum differs): {_EXPORT_AGAIN}")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: {_EXPORT_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"can't read {path}: {error}") from None


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: the file can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def geometry_to_dict(geometry: Geometry) -> dict[str, Any]:
    """Plain JSON types."""
    return dataclasses.asdict(geometry)


def _geometry(data: dict[str, Any]) -> Geometry:
    vision = {**data["vision"], "deepstack_levels": tuple(data["vision"]["deepstack_levels"])}
    image = {**data["image"], "mean": tuple(data["image"]["mean"]), "std": tuple(data["image"]["std"])}
    tokens = {**data["tokens"], "stop": tuple(data["tokens"]["stop"])}
    text = _checked(TextGeometry, data["text"], least=1)
    return Geometry(
        text,
        _checked(VisionGeometry, vision, least=1),
        _checked(ImageSettings, image, least=1),
        _checked(TokenIds, tokens, least=0, most=text.vocab_size - 1),
    )


def _checked(kind: type[_Part], values: dict[str, Any], *, least: int, most: int = _MOST) -> _Part:
    """A part of the geometry from JSON: sizes are whole numbers between bounds, what is in tuples is not negative.

    Raises:
        ValueError: one is not.
        TypeError: one is missing, or nobody knows it.
    """
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if isinstance(value, tuple):
            is_sound = all(type(one) in (int, float) and 0 <= one <= most for one in value)
        elif field.type is int:
            is_sound = type(value) is int and least <= value <= most  # a JSON boolean is no number
        else:
            is_sound = isinstance(value, str)
        if not is_sound:
            raise ValueError(f"{field.name} is {value!r}")
    return kind(**values)
