"""The command line's own: recipes found and overridden, help, tasks by name."""
