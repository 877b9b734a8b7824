"""Detection on drawn shapes."""
