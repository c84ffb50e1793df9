"""Teachers, and what they say."""
