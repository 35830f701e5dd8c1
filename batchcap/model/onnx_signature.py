"""Owns the look at a graph's inputs and outputs: what `bundle.json` says must be what ONNX Runtime has loaded."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from batchcap.core.errors import BundleError

# Type and shape of a value; None is a side that may have any length.
Shape = tuple[int | None, ...]
FLOAT, INT64 = "tensor(float)", "tensor(int64)"


def require_values(
    session: onnxruntime.InferenceSession,
    path: Path,
    inputs: Mapping[str, tuple[str, Shape]],
    outputs: Mapping[str, tuple[str, Shape]],
) -> None:
    """Compare what a graph takes and gives with what it must.

    Args:
        session: the graph, loaded.
        path: where it came from, for the message.
        inputs: all that it may take.
        outputs: what it must give; more is not asked for.

    Raises:
        BundleError: it is not the graph of this bundle; the message names the first difference.
    """
    for kind, found, wanted in (
        ("input", session.get_inputs(), inputs),
        ("output", session.get_outputs(), outputs),
    ):
        values = {value.name: value for value in found}
        missing = sorted(wanted.keys() - values.keys())
        unknown = sorted(values.keys() - wanted.keys()) if kind == "input" else []
        if missing or unknown:
            what = f"lacks the {kind} {missing[0]}" if missing else f"has an {kind} {unknown[0]} that is not used"
            raise BundleError(f"{path} does not match bundle.json: it {what}. {_REMEDY}")
        for name, (element, shape) in wanted.items():
            value = values[name]
            if value.type != element or not _fits(value.shape, shape):
                raise BundleError(
                    f"{path} does not match bundle.json: its {kind} {name} is {value.type} {_text(value.shape)}, "
                    f"not {element} {_text(shape)}. {_REMEDY}"
                )


_REMEDY = "Export the bundle again with `batchcap export`"


def _fits(found: list[int | str | None], wanted: Shape) -> bool:
    """Whether each side that has a fixed length has the wanted one; a named side may have any."""
    return len(found) == len(wanted) and all(
        side == length for side, length in zip(found, wanted, strict=True) if isinstance(side, int) and length
    )


def _text(shape: list[int | str | None] | Shape) -> str:
    return f"[{', '.join('…' if side is None else str(side) for side in shape)}]"
