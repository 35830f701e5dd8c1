"""A checkpoint's chat template is found wherever transformers keeps it; of several the default is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.chat_template import chat_template
from tests.checkpoints import make_tokenizer

NAMED = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
BY_NAME = {one["name"]: one["template"] for one in NAMED}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def keyed(template: object) -> dict[str, object]:
    return {"chat_template": template}


# Files of the checkpoint; the template is always "D".
FOUND: dict[str, dict[str, Any]] = {
    "a file": {"chat_template.jinja": "D"},
    "a file beside others": {"chat_template.jinja": "D", "additional_chat_templates/rag.jinja": "R"},
    "a file comes first": {"chat_template.jinja": "D", "tokenizer_config.json": keyed("other")},
    "JSON": {"chat_template.json": keyed("D")},
    "a list in JSON": {"chat_template.json": keyed(NAMED)},
    "by name in JSON": {"chat_template.json": keyed(BY_NAME)},
    "the tokenizer": {"tokenizer_config.json": keyed("D")},
    "a list of the tokenizer": {"tokenizer_config.json": keyed(NAMED)},
    "the processor": {"processor_config.json": keyed("D"), "tokenizer_config.json": {}},
    "the tokenizer, where JSON has no default": {
        "chat_template.json": keyed(NAMED[:1]),
        "tokenizer_config.json": keyed(NAMED),
    },
    "a folder": {"additional_chat_templates/default.jinja": "D", "additional_chat_templates/rag.jinja": "R"},
    "a folder of an older version": {"chat_templates/default.jinja": "D", "chat_templates/rag.jinja": "R"},
}


@pytest.mark.parametrize("place", FOUND)
def test_found(tmp_path: Path, place: str) -> None:
    assert chat_template(write(tmp_path, FOUND[place])) == "D"


@pytest.mark.parametrize("place", ["a file beside others", "a list of the tokenizer", "a folder"])
def test_transformers_takes_the_same(tmp_path: Path, place: str) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, {"tokenizer_config.json": settings, **FOUND[place]})
    if "tokenizer_config.json" in FOUND[place]:
        write(tmp_path, {"tokenizer_config.json": settings | FOUND[place]["tokenizer_config.json"]})
    assert AutoTokenizer.from_pretrained(tmp_path).get_chat_template() == "D" == chat_template(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no chat template \(chat_template\.jinja\): copy the file from the model it was trained from"),
        ({"tokenizer_config.json": keyed(None)}, r"has no chat template"),
        (
            {"tokenizer_config.json": keyed(NAMED[::2]), "chat_templates/tools.jinja": "T"},
            r"\('rag' in tokenizer_config\.json, .*, 'tools' in chat_templates\), and none is the default: save .*",
        ),
        ({"chat_template.json": "["}, r"can't read .*chat_template\.json"),
    ],
)
def test_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        chat_template(write(tmp_path, files))
