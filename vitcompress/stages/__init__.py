"""The stages of a chain: one file a stage, each a config and a function."""
