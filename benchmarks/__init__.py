"""Speed and memory, measured; `python -m benchmarks` runs everything."""
