"""What decides which units go: one file a saliency, found by its name, with a `SALIENCY`."""
