"""What guidances and prompt processors derive from."""

from dataclasses import dataclass

import torch


class Updateable:
    """Hears of each step, after its attributes that are Updateable."""

    def do_update_step(self, epoch, global_step, on_load_weights=False):
        """What a system calls before a step."""
        for name in dir(self):
            part = getattr(self, name, None)
            if not name.startswith("_") and isinstance(part, Updateable):
                part.do_update_step(epoch, global_step, on_load_weights)
        self.update_step(epoch, global_step, on_load_weights=on_load_weights)

    def update_step(self, epoch, global_step, on_load_weights=False):
        """For subclasses."""


class BaseObject(Updateable):
    """Made from a mapping; on the CPU here, where the real one insists on CUDA."""

    @dataclass
    class Config:
        """For subclasses."""

    def __init__(self, cfg=None):
        self.cfg = self.Config(**(cfg or {}))
        self.device = torch.device("cpu")
        self.configure()

    def configure(self):
        """For subclasses."""
