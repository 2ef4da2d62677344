"""Masks as labelling tools export them, drawn once into label maps."""
