"""One file a way of reaching a device, the same functions in each."""
