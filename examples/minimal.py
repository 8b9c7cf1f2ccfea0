"""Generate one asset, in about a minute on two CPU cores: `python examples/minimal.py`."""

from vp3d import generate, load_config

config = load_config("draft", prompt="a red mushroom with a white stem")
asset = generate(config)
print(asset.path("glb"))
print(asset.figures)
