"""The same network in another form, or at another input size."""
