"""Prune: a physically narrower network."""
