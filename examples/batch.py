"""Generate several assets. The models are loaded once and kept between the calls.

Run `python examples/batch.py`, or give prompts: `python examples/batch.py "a blue mug" "a pink
cone"`.
"""

import sys

from vp3d import generate, load_config, load_models
from vp3d.errors import VP3DError

prompts = sys.argv[1:] or ["a yellow duck", "a blue mug", "a green car with black wheels"]
models = load_models(load_config("draft", prompt=prompts[0]))
for prompt in prompts:
    try:
        asset = generate(load_config("draft", prompt=prompt), models=models)
    except VP3DError as error:  # for example a word that the models do not know
        print(f"{prompt}: {error}")
    else:
        print(f"{prompt}: {asset.path('glb')}")
