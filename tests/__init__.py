"""The tests. Each process computes with one thread, so that parallel processes do not compete for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # OpenMP reads both when torch is imported, so they are set before that
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
