"""LiteRT (.tflite)."""
