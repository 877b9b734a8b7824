"""One file a target, with a function `tables()`. A file needs a source and a date for every list in it."""
