"""The built-in demonstration: a network on real handwritten digits, quantized for two targets."""
