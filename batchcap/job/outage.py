"""Owns the answer to: do images fail because the network is gone? Then the run ends, and their rows are left for later.

One server that is gone is another matter: its images fail, and the job goes on.
"""

from collections.abc import Iterable, Iterator, Sequence

from batchcap.core.address import address_of, host_of, is_remote
from batchcap.core.errors import ErrorKind
from batchcap.core.records import Failure, Outcome, Request
from batchcap.core.sources import FileAt
from batchcap.remote.attempts import NetworkError

# Failures without a later image that was read, and different servers among them, that no single dead server explains.
MANY, SEVERAL = 20, 3
# Images are read several at a time, and captioned later: one that is so much further on was read after the failure.
LATER_ROWS = 4


class Outage:
    """Holds failures of the network back until it is known what they mean.

    Args:
        inputs: of the job: where the server of one of these fails, nothing is left to go on with.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self._of_inputs = {host_of(given) for given in inputs if is_remote(given)}
        self._held: list[tuple[Outcome, Failure]] = []
        self._fetched: set[int] = set()  # rows under way whose images are at addresses
        self._last_read = -1

    def sent(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Requests as they are handed out: only images at addresses tell whether there is a network."""
        for request in requests:
            image = request.row.image
            if isinstance(image, FileAt) and address_of(image.path) is not None:
                self._fetched.add(request.index)
            yield request

    def admit(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The outcomes that can be recorded now.

        Raises:
            NetworkError: the network is gone. Rows whose outcomes are held have none, and are captioned later.
        """
        known = []
        for outcome in outcomes:
            failure, index = outcome.result, outcome.request.index
            was_fetched = index in self._fetched
            self._fetched.discard(index)
            if isinstance(failure, Failure) and failure.kind is ErrorKind.NETWORK:
                self._held.append((outcome, failure))
                continue
            known.append(outcome)
            if was_fetched:
                self._last_read = max(self._last_read, index)
        held = self._held
        self._held = [one for one in held if one[0].request.index + LATER_ROWS > self._last_read]
        known += [outcome for outcome, _failure in held if outcome.request.index + LATER_ROWS <= self._last_read]
        if len(self._held) >= MANY:
            self._require_network()
            known += self.release()
        return known

    def release(self) -> list[Outcome]:
        """What is held: the images have failed, and the network has not."""
        released = [outcome for outcome, _failure in self._held]
        self._held.clear()
        return released

    def _require_network(self) -> None:
        hosts = {_host(failure.message) for _outcome, failure in self._held}
        if len(hosts) >= SEVERAL or hosts & self._of_inputs:
            last = self._held[-1][1].message
            raise NetworkError(
                f"{len(self._held)} images in a row could not be fetched; their rows are left for the next run. The "
                f"last: {last}"
            )


def _host(message: str) -> str:
    """The server that a message is about, which begins with the address."""
    address = address_of(message.partition(" ")[0])
    return "" if address is None else host_of(address)
