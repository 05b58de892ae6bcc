"""A model of the GPU for its CUDA operators: ``python -m benchmarks.gpu_model``.

It counts instructions in sm_90 machine code (SASS), which needs nvcc but no GPU, and predicts
times. Counts are exact; the times come from a model that was not calibrated on hardware.
docs/gpu.md says what it assumes.
"""
