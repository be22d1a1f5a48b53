"""Weights on disk: the only place that knows file names and foreign key names."""
