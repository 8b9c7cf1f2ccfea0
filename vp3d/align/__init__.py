"""Alignment of the 2D models: pure functions of pictures, without files and console."""
