"""Owns a job: what is left of it, its loop, what becomes of a row, and how it ends."""
