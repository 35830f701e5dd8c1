"""Owns what a checkpoint is: its configuration, its tensors, whether it can be exported, and how its weights are rounded."""
