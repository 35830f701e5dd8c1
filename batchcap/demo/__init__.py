"""The demo model: a tiny, genuine Qwen3-VL, and the drawn scenes that it knows."""
