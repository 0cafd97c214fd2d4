"""How a mean update becomes the next θ."""
