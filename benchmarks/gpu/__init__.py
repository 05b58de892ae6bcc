"""What only a GPU can show, in parts that each end within minutes: ``python -m benchmarks.gpu``."""
