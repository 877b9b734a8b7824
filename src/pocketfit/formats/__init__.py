"""File formats, read and written without their runtimes."""
