"""What keeps a training from doing harm."""
