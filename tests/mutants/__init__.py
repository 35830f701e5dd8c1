"""Bugs put in on purpose, kept as data: each names the tests that must fail with it."""
