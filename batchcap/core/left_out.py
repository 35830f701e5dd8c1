"""Owns packages that libraries import where they are installed and that nothing here uses."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _LeftOut(MetaPathFinder, Loader):
    """Finds one package, so that nobody else does, and does not load it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == self._package else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ImportError(f"{spec.name} is left out", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:  # noqa: ARG002 - the name that it has for the importer
        raise AssertionError("no module was made")


def leave_pandas_out() -> None:
    """Let this process go on as if pandas were not there: PyArrow would load it, in half a second, at its first array.

    For programs, not for libraries: whoever calls batchcap may want pandas.
    """
    sys.meta_path.insert(0, _LeftOut("pandas"))
