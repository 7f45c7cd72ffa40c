"""Sparsify: zeros in patterns."""
