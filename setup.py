"""What pyproject.toml cannot say: models and recipes are package data that lie outside `vp3d/`.

The folders `assets/` and `configs/` of the repository become `vp3d/assets` and `vp3d/configs` of the
wheel, where `vp3d/config/paths.py` looks first. All other settings are in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vp3d", "vp3d.*"]), "vp3d.assets", "vp3d.configs"],
    package_dir={"vp3d.assets": "assets", "vp3d.configs": "configs"},
    include_package_data=False,
    package_data={
        "vp3d": ["py.typed"],
        "vp3d.assets": ["**/*.json", "**/*.safetensors", "**/*.txt"],
        "vp3d.configs": ["*.yaml"],
    },
)
