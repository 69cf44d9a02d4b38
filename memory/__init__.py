"""What is remembered: references, what was learned from them, instructions there are."""
