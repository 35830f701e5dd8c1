"""Owns which places no form may be written to: another form's, an input, the job folder, and what takes no files."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from batchcap.core.address import address_of, host_of
from batchcap.core.errors import UsageError
from batchcap.inputs.columns import shown
from batchcap.outputs.form import Form
from batchcap.outputs.names import can_be_beside
from batchcap.outputs.uploads import Uploads
from batchcap.store.folder import JobFolder


def require_places(forms: Sequence[Form], folder: JobFolder, sources: Callable[[], Iterable[tuple[str, Path]]]) -> None:
    """Refuse forms that would write over each other, over an input, or among the parts.

    Args:
        forms: of one command.
        folder: the job folder.
        sources: gives id and path of every input file of the job.

    Raises:
        UsageError: one would.
    """
    places = dict[str, Form]()
    for form in forms:
        if form.given_where is not None:
            _require_outside(form, form.given_where, folder)
        if form.place is not None:
            other = places.setdefault(_key(form.place), form)
            if other is not form:
                raise UsageError(
                    f"{other.name} and {form.name} would both be written to {shown(form.place)}: name another place "
                    f"for one of them ({form.name}:WHERE)"
                )
    ours = [(name, form) for key, form in places.items() for name in {key, os.fspath(form.place or key)}]
    for _name, path in sources() if ours else ():
        source = os.fspath(path)
        for name, form in ours:
            if source == name or source.startswith(f"{name}{os.sep}"):
                raise UsageError(
                    f"{shown(path)} is an input of this job, so {form.name} can't be written to {shown(Path(name))}: "
                    f"name another place ({form.name}:WHERE)"
                )


def require_beside(form: str, images: Iterable[Path], uploads: Uploads) -> None:
    """Refuse images beside which no file can be written: in folders of this machine, or at addresses.

    Args:
        form: its name, for messages.
        images: of the job; those of a folder follow each other.
        uploads: of the job.

    Raises:
        UsageError: there is one.
        NetworkError: a store can't be asked now.
    """
    hosts, folder = set[str](), Path()
    for image in images:
        address = address_of(image)
        if address is None:
            if image.parent != folder:
                folder = image.parent
                _require_writable(form, folder)
            continue
        if not can_be_beside(image):
            raise UsageError(
                f"{shown(image)} is on a web server, which takes no files, so there can't be one beside it: name a "
                f"folder, or an address of a bucket ({form}:WHERE)"
            )
        if (host := host_of(address)) not in hosts:
            hosts.add(host)
            uploads.require_place(address.rpartition("/")[0])


def _require_writable(form: str, folder: Path) -> None:
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"no files can be written beside the images in {shown(folder)} (read-only, or no permission): name a "
            f"folder for them ({form}:FOLDER)"
        )


def _require_outside(form: Form, where: Path, folder: JobFolder) -> None:
    if address_of(where) is None and Path(_key(where)).is_relative_to(_key(folder.path)):
        raise UsageError(
            f"can't write {form.name} into the job folder {shown(folder.path)}, since readers take all files in it for "
            f"parts: name another place ({form.name}:WHERE)"
        )


def _key(place: Path) -> str:
    """One text for one place, however it is written."""
    return os.fspath(place) if address_of(place) is not None else os.path.realpath(place)
