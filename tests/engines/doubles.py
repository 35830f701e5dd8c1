"""What the tests of both workers share: an inbox without an end, and a look at the sign from another process."""

import queue
import subprocess
import sys

LOOKS = "import sys; from batchcap.engines.busy_flag import BusyFlag; print(BusyFlag(int(sys.argv[1])).is_set())"


class EndlessInbox:
    """Messages for one or more lanes, and then nothing more for as long as the test lasts."""

    def __init__(self, *messages: object) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        for message in messages:
            self.put(message)

    def put(self, message: object) -> None:
        self._queue.put(message)

    def get_within(self, seconds: float) -> object | None:
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def get(self) -> object:
        return self._queue.get()


def seen_elsewhere(file: int) -> bool:
    """Whether a process that is not at work sees the sign up."""
    command = [sys.executable, "-c", LOOKS, str(file)]
    return subprocess.run(command, pass_fds=[file], check=True, capture_output=True, text=True).stdout == "True\n"
