"""Owns the image stage: encoded bytes in, patches for the vision encoder out."""
