"""Align the 2D model to a reward, or steer it. Pure: no files, no console."""
