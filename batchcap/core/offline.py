"""Owns what keeps batchcap off the network: the switches of the libraries, set before any of them is loaded.

Several libraries collect telemetry, ask for updates or look for newer files unless they are told not to, and most read
that once, when they are imported: importing onnxruntime is enough for a device identifier on the disk and a question to
the name server. So `batchcap/__init__.py` applies this module before any other import. Child processes inherit the
environment; programs that run without batchcap are handed `environment()`. Two parts alone ask the network:
`export.hub`, for a hub name that a person gives, and `remote`, for addresses where `--allow-remote` was given.
"""

import os
import sys
from typing import NamedTuple


class Switch(NamedTuple):
    """An environment variable that batchcap sets, whatever was there.

    Attributes:
        variable: its name.
        value: that keeps the libraries quiet.
        libraries: distributions that obey it.
    """

    variable: str
    value: str
    libraries: tuple[str, ...] = ()


SWITCHES = (
    Switch("ORT_DISABLE_TELEMETRY", "1", ("onnxruntime", "onnxruntime-genai")),
    Switch("HF_HUB_DISABLE_TELEMETRY", "1", ("huggingface-hub", "hf-xet", "transformers")),
    Switch("HF_HUB_OFFLINE", "1", ("huggingface-hub", "transformers")),
    Switch("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
    Switch("HF_HUB_DISABLE_UPDATE_CHECK", "1"),
    Switch("HF_HUB_DISABLE_XET", "1"),  # Xet asks further hosts, with headers of its own; files come over HTTP, too
    Switch("HF_DATASETS_OFFLINE", "1", ("datasets",)),  # goes before HF_HUB_OFFLINE there
    Switch("HF_UPDATE_DOWNLOAD_COUNTS", "0", ("datasets",)),
    Switch("RAY_USAGE_STATS_ENABLED", "0", ("ray",)),
    Switch("DO_NOT_TRACK", "1"),  # what other libraries agree on
)
# Of programs that batchcap is compared with: OpenVINO and NNCF send nothing where they are tested. Not for batchcap's
# own processes, since more than telemetry obeys CI.
_OTHER_PROGRAMS = {"CI": "true", "NNCF_CI": "1"}

_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface-hub reads it
# What the caller said about the hub before HF_HUB_OFFLINE was set here. Inherited, or a child process would take the
# value of its parent for the caller's.
_CALLER_OFFLINE = "BATCHCAP_CALLER_OFFLINE"
_MODULES = {"onnxruntime": "onnxruntime", "huggingface-hub": "huggingface_hub", "datasets": "datasets", "ray": "ray"}
_LOADED_EARLIER: list[str] = []


def apply() -> None:
    """Set every switch for this process and its children, over whatever value is there."""
    wishes = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    os.environ.setdefault(_CALLER_OFFLINE, str(int(any(wish.upper() in _TRUE for wish in wishes))))
    _LOADED_EARLIER.extend(library for library, module in _MODULES.items() if module in sys.modules)
    os.environ.update({switch.variable: switch.value for switch in SWITCHES})


def environment() -> dict[str, str]:
    """The environment for a program that runs without batchcap: this process's, with nothing collected or sent."""
    return {**os.environ, **{switch.variable: switch.value for switch in SWITCHES}, **_OTHER_PROGRAMS}


def hub_allowed() -> bool:
    """Whether the hub may be asked for a checkpoint: not where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE was set."""
    return os.environ.get(_CALLER_OFFLINE) != "1"


def faults() -> list[str]:
    """Why a library may collect or send something in this process all the same; what to do about it."""
    changed = [
        f"{switch.variable} is {os.environ.get(switch.variable)!r} where batchcap set {switch.value!r}: look for what "
        "changes it"
        for switch in SWITCHES
        if os.environ.get(switch.variable) != switch.value
    ]
    return changed + [
        f"{library} was loaded before batchcap and may collect or send data: import batchcap first"
        for library in _LOADED_EARLIER
    ]


def statement() -> str:
    """What is true where there are no faults: that nothing is sent, and whose telemetry is switched off."""
    known = dict.fromkeys(library for switch in SWITCHES for library in switch.libraries)
    return f"nothing is sent; telemetry of {', '.join(filter(_is_installed, known))} switched off"


def _is_installed(distribution: str) -> bool:
    from importlib import metadata  # noqa: PLC0415 - `batchcap --help` has no use for it

    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
