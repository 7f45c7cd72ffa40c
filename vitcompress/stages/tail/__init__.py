"""Tail: compute only what the head reads."""
