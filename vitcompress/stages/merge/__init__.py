"""Merge: fewer tokens for the same image."""
