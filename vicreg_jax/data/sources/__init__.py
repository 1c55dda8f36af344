"""Where images come from: each module opens one kind of data as a `Source`."""
