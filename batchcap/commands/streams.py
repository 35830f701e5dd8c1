"""Owns the standard streams of the command: closed ones lead nowhere, and a lost one never ends a job."""

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, TextIO

from batchcap.core.errors import StreamError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Descriptor(io.FileIO):
    """A stream's file descriptor. After the first error nothing more is written to it.

    A reader that has seen enough (`| head`) and a terminal that was closed are no errors. Others are told of stdout,
    once: results are lost. Of stderr nobody could be told.

    Raises:
        StreamError: a result can't be written.
    """

    def __init__(self, number: int, *, has_results: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._has_results = has_results
        self._is_lost = False

    def write(self, data: "ReadableBuffer") -> int:
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                if self._has_results and not self._reader_has_left(error):
                    raise StreamError(
                        f"can't write the results to stdout ({error.strerror}): send them somewhere else. Files that "
                        "this command has written are whole"
                    ) from None
        return memoryview(data).nbytes

    def _reader_has_left(self, error: OSError) -> bool:
        is_device = stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return error.errno == errno.EPIPE or (error.errno == errno.EIO and is_device)


def open_standard_streams() -> None:
    """Set up stdin, stdout and stderr of the command.

    Streams that the caller has closed (`2>&-`) lead nowhere; else files of ours would get their numbers.
    """
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(descriptor, True)
            # Not closed with this object, which is replaced below: the number stays taken as long as we run.
            stream = os.fdopen(descriptor, mode, encoding="utf-8", closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    sys.stdout = _that_survives(sys.stdout, has_results=True)
    sys.stderr = _that_survives(sys.stderr, has_results=False)


def _that_survives(stream: TextIO, *, has_results: bool) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), has_results=has_results)),
        encoding=stream.encoding,
        errors="backslashreplace",  # a caption may hold what this terminal's encoding lacks
        line_buffering=stream.line_buffering,
    )
