"""Owns the prompt: the token ids before and after an image's visual tokens, and the way back from ids to text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from batchcap.core.errors import BundleError, UsageError
from batchcap.core.prompts import Prompt
from batchcap.model.bundle import Bundle

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """One user turn with an image and a text, rendered by the checkpoint's chat template.

    Attributes:
        prefix_ids: tokens before the image's visual tokens.
        suffix_ids: tokens after them.
        opens_thinking: whether the template opens the model's thoughts, so that the answer begins inside them.
        name: the prompt's.
    """

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    opens_thinking: bool = False
    name: str = ""

    @property
    def text_tokens(self) -> int:
        """Tokens of the prompt that are not of the image."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    @classmethod
    def from_bundle(cls, bundle: Bundle, text: str) -> "PromptTemplate":
        """The template for a prompt text.

        Raises:
            UsageError: the text holds a special token of the model, or is not valid text.
            BundleError: the bundle's chat template or tokenizer can't be used.
        """
        (template,) = cls.all_from_bundle(bundle, [Prompt(text)])
        return template

    @classmethod
    def all_from_bundle(
        cls, bundle: Bundle, prompts: Sequence[Prompt], tokenizer: Tokenizer | None = None
    ) -> "tuple[PromptTemplate, ...]":
        """The templates of several prompts, in their order; `tokenizer` is the bundle's, where it is loaded already.

        Raises:
            UsageError: as `from_bundle`.
            BundleError: as `from_bundle`.
        """
        tokenizer = tokenizer or load_tokenizer(bundle)
        return tuple(cls._rendered(bundle, tokenizer, prompt) for prompt in prompts)

    @classmethod
    def _rendered(cls, bundle: Bundle, tokenizer: Tokenizer, prompt: Prompt) -> "PromptTemplate":
        _refuse_special_tokens(tokenizer, prompt.text)
        try:
            source = bundle.chat_template_path.read_text(encoding="utf-8")
            rendered = render_chat(source, prompt.text)
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            raise BundleError(f"the chat template {bundle.chat_template_path} can't be used: {error}") from None
        ids = tokenizer.encode(rendered, add_special_tokens=False).ids
        image_pad = bundle.geometry.tokens.image_pad
        if ids.count(image_pad) != 1:
            raise BundleError(
                f"the chat template {bundle.chat_template_path} gives {ids.count(image_pad)} places for an image, "
                "not one: it is not a Qwen3-VL template"
            )
        index = ids.index(image_pad)
        return cls(tuple(ids[:index]), tuple(ids[index + 1 :]), _opens_thinking(rendered), prompt.name)


def bundle_opens_thinking(bundle: Bundle) -> bool:
    """Whether the bundle's chat template opens the model's thoughts; False also where the template can't be used."""
    try:
        return _opens_thinking(render_chat(bundle.chat_template_path.read_text(encoding="utf-8"), ""))
    except Exception:  # noqa: BLE001 - a template is a program; `from_bundle` says what is wrong with it
        return False


def _opens_thinking(rendered: str) -> bool:
    return rendered.rstrip().endswith(THINK_OPEN)


def render_chat(source: str, text: str) -> str:
    """The chat template's text for one image and one prompt, up to where the answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return _compiled(source).render(messages=messages, add_generation_prompt=True)


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    """A chat template, ready to be rendered: that takes 20 ms, and a prompt with {title} is another for each row.

    The environment is the one transformers renders chat templates in (utils/chat_template_utils.py).
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - whatever a template holds
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)


def _refuse_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt {text!r} is not valid text ({error.reason}): give it in UTF-8") from None
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.content in text:
            raise UsageError(f"the prompt holds the special token {token.content}: leave it out")


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: tokenizer.json can't be read.
    """
    try:
        tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise BundleError(f"{bundle.tokenizer_path} can't be read: {error}") from None
    # Left in the file by training; transformers, too, cuts and pads only when asked.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Detokenizer:
    """Turns token ids into their text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, token_ids: list[int]) -> str:
        """The text, special tokens left out and white space trimmed."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True).strip()


def without_cut_character(text: str) -> str:
    """A text that stops in the middle of a character's bytes, without what the tokenizer puts in its place."""
    return text.removesuffix("\ufffd").rstrip()
