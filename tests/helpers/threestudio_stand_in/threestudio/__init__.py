"""The part of threestudio 0.2.3 that an extension uses, for tests where threestudio is not
installed.

The rules are those of threestudio, the code is ours: a class is registered under a name once and
found by it; an object is built from a mapping that must fit its `Config`, is configured with `cfg`
and `device` set, and hears of every step. It says nothing about what happens inside threestudio.
"""

modules: dict[str, type] = {}


def register(name):
    """The decorator that puts a class under `name`; a name is given once."""

    def put(cls):
        if name in modules:
            raise ValueError(f"{name} is taken")
        modules[name] = cls
        return cls

    return put


def find(name):
    """The class under `name`."""
    return modules[name]
