"""VP3D in threestudio: a folder for its `custom/`. Importing it registers what `configs/vp3d.yaml` names; see README.md."""

from . import guidance

__all__ = ["guidance"]
