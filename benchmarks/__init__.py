"""What streaming costs, measured: `python -m benchmarks [names…]`. See README.md."""
