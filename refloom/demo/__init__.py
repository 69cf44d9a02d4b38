"""References and seeds written for refloom, so that a newcomer has something to run."""
