"""Models on disk and on the hub: the only package that knows file names, folder layouts and published keys."""
