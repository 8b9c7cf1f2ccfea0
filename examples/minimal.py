"""Generate one asset.

Run `python examples/minimal.py`; it takes about a minute on two CPU cores.
"""

from vp3d import generate, load_config

config = load_config("draft", prompt="a red mushroom with a white stem")
asset = generate(config)
print(asset.path("glb"))
print(asset.figures)
