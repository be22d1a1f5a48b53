"""Measuring how good a model's pictures are: painting many captions, features, distances between sets, and reports.

The metrics work on feature networks and picture files, and do not depend on how the pictures were made.
"""
