"""What is claimed about speed and judging, to be run again."""
