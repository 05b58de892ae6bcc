"""What operators share at run time: backends, checks, autocast, the extension, Triton."""
