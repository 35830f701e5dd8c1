"""Owns the search for the smallest precision that is good enough."""
