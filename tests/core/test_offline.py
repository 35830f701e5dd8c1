"""What batchcap says about the network, and that it notices where it would not be true."""

import pytest

from batchcap.core import offline
from batchcap.report.doctor import examine


def _network(model: str) -> tuple[str, list[str]]:
    findings = examine(model, check=False)
    return findings.sections["machine"]["network"], findings.problems


def test_doctor_says_whose_telemetry_is_off() -> None:
    said, problems = _network("no bundle")
    assert said.startswith("nothing is sent; telemetry of onnxruntime, onnxruntime-genai, huggingface-hub, ")
    assert said.endswith(" switched off")
    assert not any("ORT_DISABLE_TELEMETRY" in problem for problem in problems)


@pytest.mark.parametrize("switch", offline.SWITCHES, ids=lambda switch: switch.variable)
def test_doctor_reports_a_switch_that_was_changed(switch: offline.Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch.variable, "otherwise")
    said, problems = _network("no bundle")
    assert "nothing is sent" not in said
    assert f"{switch.variable} is 'otherwise' where batchcap set '{switch.value}'" in problems[0]
    monkeypatch.delenv(switch.variable)
    assert f"{switch.variable} is None" in _network("no bundle")[1][0]


def test_doctor_reports_a_library_that_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "_LOADED_EARLIER", ["onnxruntime"])
    said, problems = _network("no bundle")
    assert "nothing is sent" not in said
    assert "onnxruntime was loaded before batchcap" in problems[0]
