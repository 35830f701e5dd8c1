"""Owns where a checkpoint keeps its chat template: transformers has had several places and forms for it."""

from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.model.bundle import CHAT_TEMPLATE_FILE
from batchcap.model.stored_json import read_json

DEFAULT = "default"
_JSON_FILES = ("chat_template.json", "tokenizer_config.json", "processor_config.json")
_FOLDERS = ("additional_chat_templates", "chat_templates")


def chat_template(checkpoint: Path) -> str:
    """The chat template: the only one, or the one of several that is named `default`, as transformers takes it.

    Raises:
        CheckpointError: there is none, none is the default, or it can't be read.
    """
    if (checkpoint / CHAT_TEMPLATE_FILE).exists():
        return _text(checkpoint / CHAT_TEMPLATE_FILE)
    others: list[str] = []
    for name in _JSON_FILES:
        if (checkpoint / name).exists():
            named = _named(read_json(checkpoint / name).get("chat_template"))
            if DEFAULT in named:
                return named[DEFAULT]
            others += [f"{other!r} in {name}" for other in named]
    for folder in _FOLDERS:
        named_files = {path.stem: path for path in sorted((checkpoint / folder).glob("*.jinja"))}
        if DEFAULT in named_files:
            return _text(named_files[DEFAULT])
        others += [f"{other!r} in {folder}" for other in named_files]
    if others:
        raise CheckpointError(
            f"{checkpoint} has chat templates ({', '.join(others)}), and none is the default: save the one for "
            f"images as {checkpoint / CHAT_TEMPLATE_FILE}"
        )
    raise CheckpointError(
        f"{checkpoint} has no chat template ({CHAT_TEMPLATE_FILE}): copy the file from the model it was trained "
        "from, or take an instruction-tuned checkpoint"
    )


def _named(template: Any) -> dict[str, str]:  # noqa: ANN401 - any JSON
    """Templates by name, from a text, a list of `{"name": …, "template": …}`, or an object of texts."""
    if isinstance(template, str):
        return {DEFAULT: template}
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    if not isinstance(template, dict):
        return {}
    return {name: text for name, text in template.items() if isinstance(name, str) and isinstance(text, str)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from None
