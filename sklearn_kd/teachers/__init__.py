"""Teachers and their logits."""
