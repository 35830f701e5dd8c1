"""Owns `batchcap tune`: which settings are the fastest on this machine with a bundle."""
