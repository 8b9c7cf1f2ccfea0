"""The packages of VP3D; all other settings are in pyproject.toml.

Models and recipes are package data outside `vp3d/`, which pyproject.toml cannot describe together
with a search for packages: the folders `assets/` and `configs/` of the repository become
`vp3d/assets` and `vp3d/configs` of the wheel. `vp3d/config/paths.py` finds them in both layouts.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vp3d", "vp3d.*"]), "vp3d.assets", "vp3d.configs"],
    package_dir={"vp3d.assets": "assets", "vp3d.configs": "configs"},
    include_package_data=False,
    package_data={
        "vp3d": ["py.typed"],
        "vp3d.serve": ["static/*", "static/vendor/*"],
        "vp3d.assets": [
            *("**/*.json", "**/*.safetensors", "**/*.txt"),
            *("household/*.csv", "household/library/**/*"),  # meshes that assets are compared with
        ],
        "vp3d.configs": ["*.yaml"],
    },
)
