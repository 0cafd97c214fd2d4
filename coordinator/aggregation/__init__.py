"""How updates become one mean update."""
