"""Pure maths on numpy arrays: no model, no file."""
