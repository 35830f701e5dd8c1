"""Owns what a model is on the disk: bundle, geometry, prompt, tensors, signatures of its graphs."""
