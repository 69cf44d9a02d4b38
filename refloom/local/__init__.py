"""The embedded model: its weights, and an OpenAI-compatible server in this process."""
