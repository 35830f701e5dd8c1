"""Owns which image formats need another package, whether it is there, and which installation helps where it is not."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from batchcap.inputs.suffix import RAW_SUFFIXES, suffix_set


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package with which more formats are read.

    Attributes:
        format: Pillow's name for what it reads, where Pillow uses it.
        noun: such an image in messages.
        module: the package as it is imported.
        extra: the extra of batchcap that installs it.
        suffixes: of files.
    """

    format: str
    noun: str
    module: str
    extra: str
    suffixes: frozenset[str]

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return _is_installed(self.module)

    @property
    def advice(self) -> str:
        """What helps where it is not."""
        return f"install its reader with `pip install 'batchcap[{self.extra}]'`, or convert it to JPEG or PNG"


@cache
def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


HEIF = Plugin("HEIF", "an HEIC image", "pillow_heif", "heif", suffix_set("heic heics heif heifs hif"))
JXL = Plugin("JXL", "a JPEG XL image", "pillow_jxl", "jxl", suffix_set("jxl"))
RAW = Plugin("", "a camera raw file", "rawpy", "raw", RAW_SUFFIXES)
PLUGINS = (HEIF, JXL, RAW)


def plugin_suffixes() -> frozenset[str]:
    """Suffixes of the images that installed packages read."""
    return frozenset(suffix for plugin in PLUGINS if plugin.is_installed for suffix in plugin.suffixes)


def advice_for(suffix: str) -> str | None:
    """What helps with files of a suffix that a package could read that is not there; None where none could."""
    return next((plugin.advice for plugin in PLUGINS if suffix in plugin.suffixes and not plugin.is_installed), None)
