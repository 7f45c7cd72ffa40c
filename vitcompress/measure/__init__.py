"""Measurements: accuracy, agreement, latency, cost."""
