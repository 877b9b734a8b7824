"""A plan and what it is made of: settings of passes, settings of an export."""
