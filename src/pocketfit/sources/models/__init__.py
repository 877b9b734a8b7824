"""Modules, factories, folders and weights in: Models out."""
