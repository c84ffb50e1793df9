"""Distillation targets."""
