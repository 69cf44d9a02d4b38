"""What is stored and looked up: references, their vectors, what was learned, known texts."""
