"""Ways to carry out requests besides a model in this process: work units, and a pool of processes on this machine."""
