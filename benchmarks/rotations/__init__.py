"""Rotations and reflections: the public comparison of EDelta (arXiv 2605.06729), repeated with controls."""
