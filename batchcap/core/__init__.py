"""Owns what every other part stands on: records, errors, machine, text, files that appear whole, the cache."""
