"""Pixels in and out: the canvas, masks, picture files and their metadata, depth estimation."""
