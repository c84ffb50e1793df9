"""Training of wide networks in function space: gradient flow, and the ridge minimum."""
