"""Images and arrays in: samples in four disjoint splits out."""
