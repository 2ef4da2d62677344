"""Trains networks: loader, augmentation, loop, checkpoint."""
