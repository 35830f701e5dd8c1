"""The demo model: a tiny, genuine Qwen3-VL that knows drawn scenes, and the program that trained it from nothing."""
