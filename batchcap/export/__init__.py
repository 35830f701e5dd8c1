"""Checkpoint → bundle: the decoder's graph, the vision tower's weights, the token table, the processor files."""
