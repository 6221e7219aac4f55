"""What benchmarks/soak.py, and the tests that kill runs, are made of."""
