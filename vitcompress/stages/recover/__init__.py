"""Recover: bring a compressed model back towards the dense one, without labels."""
