"""How the steps are joined."""
