"""TensorFlow Lite for Microcontrollers: a .tflite as a C array, run in an arena of fixed size."""
