"""How the threads of a worker end: with what the first one that failed met."""

import threading
from functools import partial

import pytest

from batchcap.engines.threads import run_until_first_failure

PATIENCE_S = 30.0


def test_parts_run_at_the_same_time_and_the_first_failure_counts() -> None:
    met, late = threading.Barrier(3, timeout=PATIENCE_S), threading.Event()
    sending = threading.Lock()

    def fail() -> None:
        met.wait()  # breaks unless all parts run at once
        raise MemoryError("first")

    def fail_later() -> None:
        met.wait()
        late.wait(PATIENCE_S)
        raise ValueError("second")

    with pytest.raises(MemoryError, match="first"):
        run_until_first_failure([fail_later, fail, fail_later], sending)
    assert sending.locked(), "nothing comes between the worker's last word and its end"
    late.set()


def test_a_message_on_its_way_is_sent_to_its_end() -> None:
    sending, sent = threading.Lock(), list[str]()
    begun = threading.Event()

    def send() -> None:
        with sending:
            sent.append("half")
            begun.set()
            threading.Event().wait(0.2)
            sent.append("whole")
        with sending:
            sent.append("one more")

    def fail() -> None:
        begun.wait(PATIENCE_S)
        raise SystemExit

    with pytest.raises(SystemExit):
        run_until_first_failure([send, fail], sending)
    assert sent[:2] == ["half", "whole"]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_single_part_ends_like_many(parts: int) -> None:
    sending = threading.Lock()
    with pytest.raises(ValueError, match="invalid literal"):
        run_until_first_failure([partial(int, "x")] * parts, sending)  # type: ignore[list-item]
    assert sending.locked()
