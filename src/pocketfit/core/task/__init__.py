"""The words of a task: what the outputs of a network mean."""
