"""Word lists of the text methods, written for this package: one entry a line, ``#`` begins a comment."""
