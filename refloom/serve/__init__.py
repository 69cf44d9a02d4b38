"""What a LangGraph server is given."""
