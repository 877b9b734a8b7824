"""Files and arrays in: Models and Samples out."""
