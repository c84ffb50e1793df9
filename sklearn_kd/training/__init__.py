"""Training in function space, and the time that it takes."""

from sklearn_kd.training._stopping_time import match_stopping_time, stopping_time_of

__all__ = ["match_stopping_time", "stopping_time_of"]
