"""The sign that the encoder is at work, between processes."""

import os
import subprocess
import sys

from batchcap.engines.sign import WorkSign, make_sign_file

LOOKS = "import sys; from batchcap.engines.sign import WorkSign; print(WorkSign(int(sys.argv[1])).is_up())"


def seen_elsewhere(file: int) -> bool:
    command = [sys.executable, "-c", LOOKS, str(file)]
    return subprocess.run(command, pass_fds=[file], check=True, capture_output=True, text=True).stdout == "True\n"


def test_it_is_up_for_as_long_as_the_work_lasts() -> None:
    file = make_sign_file()
    sign = WorkSign(file)
    assert not sign.is_up()
    with sign.put_up():
        assert seen_elsewhere(file)
    assert not seen_elsewhere(file)
    os.close(file)


def test_without_a_file_nobody_waits() -> None:
    sign = WorkSign(None)
    with sign.put_up():
        assert not sign.is_up()
