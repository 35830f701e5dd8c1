"""ICC profiles written by hand, and what their colours are in sRGB by the formulas, without a colour library."""

import struct

import numpy as np
from numpy.typing import NDArray

# Columns are the XYZ of red, green and blue under D50.
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE_RGB_TO_XYZ = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
_D50 = (0.96420, 1.0, 0.82491)


def rgb_profile(to_xyz: NDArray[np.float64], gamma: float) -> bytes:
    """A matrix profile."""
    tags = {name: _xyz(to_xyz[:, column]) for column, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"RGB ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))})


def grey_profile(gamma: float) -> bytes:
    """A grey profile."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def shown(values: NDArray[np.float64], to_xyz: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """The sRGB levels of RGB levels in a matrix profile."""
    linear = np.linalg.inv(SRGB_TO_XYZ) @ to_xyz @ (values / 255) ** gamma
    return srgb_levels(linear)


def srgb_levels(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Levels 0 … 255 of linear light."""
    light = np.clip(linear, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _xyz(values: NDArray[np.float64] | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"by hand"
    text = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 78)
    tags = {b"desc": text, b"wtpt": _xyz(_D50), **tags}
    table, data = struct.pack(">I", len(tags)), b""
    for tag, body in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    white = struct.pack(">3i", *(round(value * 65536) for value in _D50))
    head = (
        bytes(8) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + white
    )
    whole = head.ljust(128, b"\0") + table + data
    return struct.pack(">I", len(whole)) + whole[4:]
