"""How good a model's pictures are, in numbers: pictures for many captions, their features, the distances between sets of them,
reference sets that are kept, and reports. The metrics know networks and files of pictures, and not how those came about.
"""
