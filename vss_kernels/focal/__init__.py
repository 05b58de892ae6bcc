"""The focal operators of CFFM: window pooling and cross-frame window attention."""
