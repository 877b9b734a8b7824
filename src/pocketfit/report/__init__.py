"""Journal in, one self-contained HTML file out."""
