"""What the samples of data are compared with, beside classes: masks, tags, numbers, pictures."""
