"""Data: sources, plans, augmentation parameters, pixels, and their feed to a device."""
