"""The sign that the encoder is at work, between processes."""

import fcntl
import os
import threading
from contextlib import suppress

import pytest

from batchcap.engines.busy_flag import BusyFlag, make_sign_file
from tests.engines.doubles import seen_elsewhere

PATIENCE_S = 30.0


def test_it_is_up_for_as_long_as_the_work_lasts() -> None:
    file = make_sign_file()
    sign = BusyFlag(file)
    assert not sign.is_set()
    with sign.hold():
        assert seen_elsewhere(file)
    assert not seen_elsewhere(file)
    os.close(file)


def test_it_is_up_until_the_last_thread_is_done() -> None:
    file = make_sign_file()
    sign = BusyFlag(file)
    first, second = sign.hold(), sign.hold()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert seen_elsewhere(file)
    with sign.hold():
        second.__exit__(None, None, None)
        assert seen_elsewhere(file)
    assert not seen_elsewhere(file)
    os.close(file)


def test_it_comes_down_after_an_error() -> None:
    file = make_sign_file()
    sign = BusyFlag(file)
    with suppress(ValueError), sign.hold():
        raise ValueError
    assert not seen_elsewhere(file)
    with sign.hold():
        assert seen_elsewhere(file)
    os.close(file)


def test_who_comes_while_the_last_one_goes_finds_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    file, lockf = make_sign_file(), fcntl.lockf
    sign, goes = BusyFlag(file), threading.Event()

    def slow(file: int, what: int) -> None:
        if what == fcntl.LOCK_UN:
            goes.set()
            threading.Event().wait(0.2)
        lockf(file, what)

    def come_and_go() -> None:
        with sign.hold():
            pass

    monkeypatch.setattr(fcntl, "lockf", slow)
    last = threading.Thread(target=come_and_go)
    last.start()
    assert goes.wait(PATIENCE_S)
    with sign.hold():
        last.join()
        assert seen_elsewhere(file)
    assert not seen_elsewhere(file)
    os.close(file)


def test_without_a_file_nobody_waits() -> None:
    sign = BusyFlag(None)
    with sign.hold():
        assert not sign.is_set()
