"""Owns how the graphs of a bundle are drawn, and whether they compute what they should."""
