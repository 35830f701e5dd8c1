"""The embedded checkpoint: a whole one, small, right about unseen scenes, and in need of DeepStack."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
)

from batchcap.export.demo import demo_checkpoint
from training.evaluate import share_by_transformers
from training.text import PROMPT

pytestmark = pytest.mark.slow

MAX_BYTES = 16 * 2**20
HELD_OUT = 30
# 30 scenes say less than the 1,000 of `training.evaluate`, so the bound is lower.
AT_LEAST = 0.9
BELOW_WITHOUT_DEEPSTACK = 0.6
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


def test_the_folder_is_whole_and_small() -> None:
    files = [path for path in demo_checkpoint().iterdir() if path.is_file()]
    assert {path.name for path in files} >= FILES
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_it_is_a_genuine_qwen3_vl() -> None:
    config = AutoConfig.from_pretrained(demo_checkpoint())
    assert config.model_type == "qwen3_vl"
    assert config.vision_config.deepstack_visual_indexes == [1, 3, 4]
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(demo_checkpoint(), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.bfloat16


def test_one_processor_does_what_tokenizer_and_image_processor_do() -> None:
    pytest.importorskip("torchvision", reason="transformers' AutoProcessor wants torchvision, batchcap does not")
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    inputs = processor(text=[chat], images=[image], return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(demo_checkpoint())(images=[image], return_tensors="pt")
    assert inputs["image_grid_thw"].equal(pixels["image_grid_thw"])
    torch.testing.assert_close(inputs["pixel_values"], pixels["pixel_values"], atol=1e-2, rtol=0)
    tokens = int(pixels["image_grid_thw"].prod()) // 4
    expected = AutoTokenizer.from_pretrained(demo_checkpoint())(chat.replace("<|image_pad|>", "<|image_pad|>" * tokens))
    assert inputs["input_ids"][0].tolist() == expected.input_ids


@pytest.mark.parametrize("deepstack", [True, False])
def test_captions_of_unseen_scenes(deepstack: bool) -> None:
    share = share_by_transformers(demo_checkpoint(), HELD_OUT, deepstack=deepstack)
    assert share >= AT_LEAST if deepstack else share < BELOW_WITHOUT_DEEPSTACK
