"""Owns how far a bundle's captions are from its checkpoint's."""
