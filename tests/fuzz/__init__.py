"""Inputs damaged by chance: what comes from others ends as a row or an error that says what to do, never a crash."""
