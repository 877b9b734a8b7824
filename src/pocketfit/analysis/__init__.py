"""Tables and estimates on which the search decides."""
