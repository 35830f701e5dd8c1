"""A reader of Prometheus's text format that refuses what the format, its conventions or node_exporter do not allow."""

import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')
_SAMPLE = re.compile(rf"({_NAME})\{{(.*)\}} (\S+)")
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """A metric: its help, kind, and samples by their labels."""

    help: str
    kind: str = ""
    samples: dict[Labels, float] = field(default_factory=dict)

    def by(self, label: str) -> dict[str, float]:
        """The samples by one label."""
        return {dict(labels)[label]: value for labels, value in self.samples.items()}

    @property
    def only(self) -> float:
        """The one sample."""
        (value,) = self.samples.values()
        return value


def parsed(text: str) -> dict[str, Family]:
    """The metrics of a file; whatever is wrong with it is an AssertionError."""
    assert text.endswith("\n")
    found: dict[str, Family] = {}
    for line in text.removesuffix("\n").split("\n"):
        if described := re.fullmatch(rf"# HELP ({_NAME}) (.+)", line):
            assert described[1] not in found, f"{described[1]} is there twice"
            name = described[1]
            found[name] = Family(described[2])
        elif typed := re.fullmatch(rf"# TYPE ({_NAME}) (counter|gauge)", line):
            assert typed[1] == name, line
            assert not found[name].kind, line
            assert not found[name].samples, line
            found[name].kind = typed[2]
            assert (typed[2] == "counter") == name.endswith("_total"), line
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == name, f"{line}: its metric is described elsewhere"
            assert found[name].kind, line
            labels = _labels(sample[2])
            assert labels not in found[name].samples, line
            assert labels == tuple(dict(labels).items()), f"{line}: a label twice"
            found[name].samples[labels] = float(sample[3])
    assert all(one.samples for one in found.values())
    return found


def _labels(text: str) -> Labels:
    labels = []
    while text:
        label = _LABEL.match(text)
        assert label, text
        labels.append((label[1], re.sub(r"\\.", lambda escape: _ESCAPES[escape[0]], label[2])))
        text = text[label.end() :]
    return tuple(labels)
