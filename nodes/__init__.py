"""What each step does: one file, one function, one prompt."""
