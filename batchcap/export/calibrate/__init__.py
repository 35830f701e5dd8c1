"""Owns what is learned from calibration captions: AWQ scales, layer by layer."""
