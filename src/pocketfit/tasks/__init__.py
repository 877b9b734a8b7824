"""What the outputs of a network mean: one file a task, each with the functions of core.task.task.Task."""
