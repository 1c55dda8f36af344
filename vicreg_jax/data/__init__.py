"""Data: sources, plans, augmentation parameters, and pixels."""
