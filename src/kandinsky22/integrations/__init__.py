"""Kandinsky 2.2 inside other programs."""
