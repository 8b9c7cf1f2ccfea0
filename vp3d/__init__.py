"""VP3D: text to textured 3D assets by visual-prompted score distillation."""

__version__ = "0.2.0.dev0"
