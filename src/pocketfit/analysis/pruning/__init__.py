"""How much channels matter, and what they cost."""
