"""The parts of the prune stage: what is measured, what is chosen, and what is rebuilt."""
