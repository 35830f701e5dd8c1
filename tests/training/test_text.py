"""The demo model's tokenizer: Qwen's format, one token a word, any text at all."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from batchcap.config import DEFAULT_PROMPT
from batchcap.demo.scenes import compose
from batchcap.export.demo import demo_checkpoint
from training.text import OTHER_PROMPTS, PROMPT, SPECIAL_TOKENS, VOCABULARY_SIZE, choose_prompt
from training.train import make_tokenizer

CHECKPOINT = demo_checkpoint()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def test_every_word_of_a_caption_is_one_token(tokenizer: Tokenizer) -> None:
    rng = random.Random(8)
    for _ in range(2000):
        caption = compose(rng, 2.2 ** rng.uniform(-1, 1)).caption
        encoded = tokenizer.encode(caption)
        assert tokenizer.decode(encoded.ids) == caption
        assert len(encoded.ids) == len(caption.replace(",", " ,").split()), encoded.tokens


@pytest.mark.parametrize("text", ["Größe, 日本語 and 🐈?", "\n\n  tabs\tand  blanks ", "1234567890 %$§ it's", "é"])
def test_any_text_has_tokens_and_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_training_the_tokenizer_again_gives_the_stored_one(tokenizer: Tokenizer) -> None:
    assert make_tokenizer().to_str() == tokenizer.to_str()


def test_ids_of_the_configuration_are_the_tokenizers(tokenizer: Tokenizer) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>")
    assert config["video_token_id"] == tokenizer.token_to_id("<|video_pad|>")
    assert config["vision_start_token_id"] == tokenizer.token_to_id("<|vision_start|>")
    assert config["vision_end_token_id"] == tokenizer.token_to_id("<|vision_end|>")
    assert generation["eos_token_id"] == [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    assert generation["do_sample"] is False
    size = config["text_config"]["vocab_size"]
    assert tokenizer.get_vocab_size() <= size <= VOCABULARY_SIZE
    assert size % 64 == 0


def test_the_chat_template_renders_what_was_trained() -> None:
    loaded = AutoTokenizer.from_pretrained(CHECKPOINT)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    chat = loaded.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert chat == f"<|im_start|>user\n{picture}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded(chat).input_ids
    assert ids == Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(chat).ids
    assert {loaded.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}.isdisjoint({None})


def test_most_training_prompts_are_the_default_one() -> None:
    rng = random.Random(0)
    drawn = [choose_prompt(rng) for _ in range(2000)]
    assert PROMPT == DEFAULT_PROMPT
    assert 0.8 < drawn.count(PROMPT) / len(drawn) < 0.9
    assert set(drawn) == {PROMPT, *OTHER_PROMPTS}


def test_tokenizer_files_name_qwens_class(tmp_path: Path) -> None:
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "Qwen2Tokenizer"
