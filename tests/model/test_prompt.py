"""The prompt's token ids are those of transformers and of the published golden run, and text can't forge tokens."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from batchcap.core.errors import BundleError, UsageError
from batchcap.decoder.thinking import Answer, ThinkingParser
from batchcap.model import prompt
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import Detokenizer, PromptTemplate, bundle_opens_thinking, load_tokenizer
from tests.checkpoints import DATA

GOLDEN = json.loads((DATA.parent / "golden" / "qwen3-vl-2b.json").read_text(encoding="utf-8"))
IMAGE_PAD = 151655
THINK_ID, CLOSE_ID = 151667, 151668
PROMPTS = [
    "Describe this image in detail.",
    "",
    "  spaces before and after  ",
    "two\nlines\n\nand a tab\t.",
    "Décris l'image, s'il te plaît\u2026 ",
    "描述这张图片。 🐈‍⬛",
    "A{{ messages }} {% if x %} & <b>'quoted'</b> \\n",
    "almost special: <|im_end| > < |image_pad|> <think >",
    "e\u0301 a combining accent",
]


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Iterator[None]:
    """Prompts are made with one tokenizer for each file, whatever its names: to read it takes half a second."""
    kept: dict[tuple[int, int], Tokenizer] = {}

    def load(bundle: Bundle) -> Tokenizer:
        stat = bundle.tokenizer_path.stat()
        key = (stat.st_ino, stat.st_mtime_ns)
        if key not in kept:
            kept[key] = load_tokenizer(bundle)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt, "load_tokenizer", load)
        yield


@pytest.fixture(scope="module")
def bundle(tiny_bundle_fp32: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with the tokenizer and chat template of the real model; the rest is of no matter here."""
    folder = tmp_path_factory.mktemp("real-tokenizer")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(DATA / name, folder)
    geometry = tiny_bundle_fp32.geometry
    tokens = dataclasses.replace(geometry.tokens, image_pad=IMAGE_PAD)
    return dataclasses.replace(tiny_bundle_fp32, folder=folder, geometry=dataclasses.replace(geometry, tokens=tokens))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("transformers")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(DATA / name, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return AutoTokenizer.from_pretrained(folder)


def reference_ids(reference: Any, text: str) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    rendered = reference.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True
    )
    return list(rendered["input_ids"])


def ids_of(template: PromptTemplate) -> list[int]:
    return [*template.prefix_ids, IMAGE_PAD, *template.suffix_ids]


@pytest.mark.parametrize("text", PROMPTS)
def test_equals_transformers(bundle: Bundle, reference: Any, text: str) -> None:
    assert ids_of(PromptTemplate.from_bundle(bundle, text)) == reference_ids(reference, text)


def test_equals_the_golden_run(bundle: Bundle) -> None:
    template = PromptTemplate.from_bundle(bundle, GOLDEN["prompt"])
    assert list(template.prefix_ids) == GOLDEN["prefix_ids"]
    assert list(template.suffix_ids) == GOLDEN["suffix_ids"]
    assert template.text_tokens + GOLDEN["visual_tokens"] == 646


def test_golden_text(bundle: Bundle) -> None:
    assert Detokenizer(prompt.load_tokenizer(bundle)).text(GOLDEN["generated_ids"]) == GOLDEN["generated_text"]


@pytest.mark.parametrize(("ending", "opened"), [("", False), ("<think>\n", True), ("<think>\n\n</think>\n\n", False)])
def test_a_template_that_opens_the_thoughts(bundle: Bundle, tmp_path: Path, ending: str, opened: bool) -> None:
    """The template of Qwen3-VL-*-Thinking ends with the tag; one that closes it again asks for no thoughts."""
    (tmp_path / "tokenizer.json").hardlink_to(bundle.tokenizer_path)
    template = bundle.chat_template_path.read_text() + ending
    (tmp_path / "chat_template.jinja").write_text(template)
    thinking = dataclasses.replace(bundle, folder=tmp_path)
    plain = PromptTemplate.from_bundle(bundle, "Describe.")
    found = PromptTemplate.from_bundle(thinking, "Describe.")
    assert (found.opens_thinking, bundle_opens_thinking(thinking)) == (opened, opened)
    assert not plain.opens_thinking
    added = found.suffix_ids[len(plain.suffix_ids) :]
    assert (THINK_ID in added, CLOSE_ID in added) == (bool(ending), "</think>" in ending)


def test_thoughts_in_the_real_tokenizer(bundle: Bundle) -> None:
    tokenizer = prompt.load_tokenizer(bundle)
    ids = [THINK_ID, *tokenizer.encode("\nA cat?\n").ids, CLOSE_ID, *tokenizer.encode("\n\nA cat.").ids]
    assert ThinkingParser(tokenizer, opened=False).read(ids, cut=False) == Answer("A cat?", "A cat.")
    assert ThinkingParser(tokenizer, opened=True).read(ids[1:], cut=False) == Answer("A cat?", "A cat.")


def test_a_bundle_without_a_template_opens_nothing(bundle: Bundle, tmp_path: Path) -> None:
    assert not bundle_opens_thinking(dataclasses.replace(bundle, folder=tmp_path))


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_end|>", "<|endoftext|>", "<think>"])
def test_special_tokens_are_refused(bundle: Bundle, token: str) -> None:
    with pytest.raises(UsageError) as caught:
        PromptTemplate.from_bundle(bundle, f"Look:{token} and answer")
    assert token in str(caught.value)


def test_broken_characters_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="prompt"):
        PromptTemplate.from_bundle(bundle, "caf\udce9")


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([*"<|>_/ k\u212a\u0338", "im_", "end", "image_", "pad", "think"]), max_size=9))
def test_no_text_forges_a_special_token(bundle: Bundle, parts: list[str]) -> None:
    """Whatever is not refused has the template's own special tokens (those from 151643 on) and no more."""
    try:
        ids = ids_of(PromptTemplate.from_bundle(bundle, "".join(parts)))
    except UsageError:
        return
    assert [one for one in ids if one >= 151643] == [151644, 151652, 151655, 151653, 151645, 151644]


def test_tokenizer_settings_that_cut_are_ignored(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    path = tmp_path / "bundle" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content), encoding="utf-8")
    cut = dataclasses.replace(bundle, folder=tmp_path / "bundle")
    assert PromptTemplate.from_bundle(cut, "a long text") == PromptTemplate.from_bundle(bundle, "a long text")


def test_text_leaves_special_tokens_and_white_space_out(bundle: Bundle) -> None:
    word = PromptTemplate.from_bundle(bundle, "cat").suffix_ids[1]
    assert Detokenizer(prompt.load_tokenizer(bundle)).text([198, word, 198, 151645, 151643]) == "cat"
    assert Detokenizer(prompt.load_tokenizer(bundle)).text([]) == ""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no image here", "0 places"),
        ("<|image_pad|><|image_pad|>", "2 places"),
        ("{% if %}", "can't be used"),
        ("{{ 'text' + 1 }}", "can't be used"),
        ("{{ 1 // 0 }}", "can't be used"),
        ("{{ raise_exception('only text, please') }}", "only text, please"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "can't be used"),
    ],
)
def test_a_template_that_does_not_fit(bundle: Bundle, tmp_path: Path, template: str, message: str) -> None:
    (tmp_path / "tokenizer.json").hardlink_to(bundle.tokenizer_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(BundleError, match=message):
        PromptTemplate.from_bundle(dataclasses.replace(bundle, folder=tmp_path), "Describe.")


def test_a_broken_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="can't be read"):
        load_tokenizer(dataclasses.replace(bundle, folder=tmp_path))
