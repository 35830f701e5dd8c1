"""What comes out of a worker's inbox."""

import traceback
from multiprocessing import Pipe
from typing import Any

import pytest

from batchcap.engines.messages import Inbox, send


class Unreadable:
    """Reading it ends as that of an image does for which there is no memory."""

    def __reduce__(self) -> Any:
        return _no_memory, ()


def _no_memory() -> None:
    raise MemoryError("no room for the image")


def test_messages_come_in_order() -> None:
    ours, theirs = Pipe()
    inbox = Inbox(theirs)
    for number in range(3):
        ours.send(number)
    assert [inbox.get() for _ in range(3)] == [0, 1, 2]
    assert inbox.get_within(0) is None
    ours.send(Unreadable())  # it listens no more: when this end is closed, it would end the process
    with pytest.raises(MemoryError):
        inbox.get()


def test_what_befalls_the_reading_of_a_message_is_told() -> None:
    ours, theirs = Pipe()
    inbox = Inbox(theirs)
    ours.send("sound")
    ours.send(Unreadable())
    assert inbox.get() == "sound"
    with pytest.raises(MemoryError, match="no room for the image"):
        inbox.get()


@pytest.mark.parametrize("items", [10, 100_000])
def test_a_message_that_nobody_reads_leaves_no_view_of_a_buffer(items: int) -> None:
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(OSError, match="Broken pipe") as raised:
        send(ours, list(range(items)))
    frames = [frame for frame, _line in traceback.walk_tb(raised.value.__traceback__)]
    views = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, memoryview)]
    assert views
    assert all(isinstance(view.obj, bytes) for view in views)


def test_a_message_comes_out_as_it_went_in() -> None:
    ours, theirs = Pipe()
    send(ours, {"text": ["a cat"] * 100})
    assert theirs.recv() == {"text": ["a cat"] * 100}
