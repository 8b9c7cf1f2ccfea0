"""Align the 2D model to a reward, or steer it by one: pure methods, without files or console."""
