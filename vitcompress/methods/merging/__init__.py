"""Ways to merge tokens, one file each, found by its name; what they share is `methods.tokens`."""
