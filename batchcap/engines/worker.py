"""Owns the start and the end of a worker process: `python -m batchcap.engines.worker SOCKET`.

A worker inherits one socket. It reads its specification from it, answers `Ready`, then takes work and gives results
over the same socket until the coordinator closes it or dies.
"""

import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Protocol

from batchcap.core.errors import BatchcapError, ExitCode, lacks_memory
from batchcap.core.signals import STOP_SIGNALS
from batchcap.engines.cores import keep_on
from batchcap.engines.messages import DecoderSpec, Fatal, Inbox, Ready, VisionSpec, send


class _Stage(Protocol):
    def run(self, inbox: Inbox) -> None: ...


def _build(spec: VisionSpec | DecoderSpec, connection: Connection) -> _Stage:
    keep_on(spec.cpus)  # before the libraries start their threads
    # Imported here so that a decoder never loads torch and the vision worker never loads ONNX Runtime.
    if isinstance(spec, VisionSpec):
        from batchcap.engines.vision_worker import VisionWorker  # noqa: PLC0415

        return VisionWorker(spec, connection)
    from batchcap.engines.decoder_worker import DecoderWorker  # noqa: PLC0415

    return DecoderWorker(spec, connection)


def main() -> None:
    """Serve on the socket whose number is the first argument."""
    # A terminal's Ctrl-C and a service manager's SIGTERM go to the whole group: the coordinator decides, not we.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    connection = Connection(int(sys.argv[1]))
    inbox = Inbox(connection)  # from here on the coordinator's end is ours, also while the model loads
    try:
        started = time.perf_counter()
        stage = _build(inbox.get(), connection)
        send(connection, Ready(time.perf_counter() - started))
        stage.run(inbox)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the coordinator is gone
    except BatchcapError as error:
        send(connection, Fatal(str(error), int(error.exit_code), lacks_memory(error)))
    except Exception as error:  # noqa: BLE001 - a worker's edge: the coordinator tells the person
        if os.environ.get("BATCHCAP_DEBUG"):
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        send(connection, Fatal(message, int(ExitCode.UNEXPECTED), lacks_memory(error)))
    os._exit(0)  # other threads are not waited for; Python would stop them inside of native code, and that aborts


if __name__ == "__main__":
    main()
