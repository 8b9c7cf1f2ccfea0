"""VP3D for the `custom/` folder of threestudio.

Importing this package registers the names that `configs/vp3d.yaml` uses; see README.md.
"""

from . import guidance

__all__ = ["guidance"]
