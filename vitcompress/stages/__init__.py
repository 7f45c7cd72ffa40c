"""The stages of a chain: one folder a stage, with a light config and the functions of `STAGE`."""
