"""Owns what each command does with its options. Heavy imports stay inside the functions, so `--help` is instant."""
