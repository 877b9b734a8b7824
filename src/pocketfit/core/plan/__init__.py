"""A plan and its parts: settings of passes, settings of an export."""
