"""Linearized students."""
