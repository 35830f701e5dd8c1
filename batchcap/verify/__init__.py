"""Comparison of a bundle with the checkpoint it was made from."""
