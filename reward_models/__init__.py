"""Reward sources. This package never imports `align`: it can be used, and tested, on its own."""
