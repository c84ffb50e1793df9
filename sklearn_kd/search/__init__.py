"""The search over soft ratio, temperature, ridge and kernel by cross-validation."""
