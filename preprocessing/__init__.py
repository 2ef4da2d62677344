"""Turns raw cases into normalised 256x256 arrays and back: geometry, normalisation, arrays."""
