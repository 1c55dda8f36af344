"""Augmentation: what is drawn for a view, and the pixels on a device or the host."""
