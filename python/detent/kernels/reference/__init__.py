"""NumPy twins of every kernel, written to be read: the specification of rounding, ties and order."""
