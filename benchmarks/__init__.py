"""Measures what streaming costs: `python -m benchmarks [names…]`. See README.md."""
