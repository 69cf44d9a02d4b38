"""Making rows and losing none."""
