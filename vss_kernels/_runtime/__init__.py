"""What operators have in common at run time: backends, checks, autocast, the extension, Triton."""
