"""The plan of a distillation: what to train, on how many rows, and how sure that is."""
