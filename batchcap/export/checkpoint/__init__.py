"""Owns what a checkpoint is: configuration, tensors, whether it can be exported, how its weights are rounded."""
