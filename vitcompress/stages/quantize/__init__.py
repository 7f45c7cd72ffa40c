"""Quantize: layers in integers of few bits."""
