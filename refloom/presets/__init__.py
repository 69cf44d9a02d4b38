"""Settings that go together, by name."""
