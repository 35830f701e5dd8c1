"""Captions in other forms, made of the finished parts of a job: files beside the images, lists, datasets."""
