"""Clean and fold: the same function with fewer operators, by exact algebra on a traced network."""
