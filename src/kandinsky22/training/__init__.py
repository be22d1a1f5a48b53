"""Training of every network: one loop as a generator, objectives as functions of a step, recipes as frozen values."""
