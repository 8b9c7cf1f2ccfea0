"""A multimodal model in a local folder that answers questions about pictures; offline.

The folder is one of transformers: `config.json`, weights as safetensors, and the files of its
processor with a chat template. Its `model_type` is compared with a list; no code of the folder
runs, and transformers renders the template in a sandbox.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vp3d.system.torch_compat import freeze

import torch
from PIL import Image

from vp3d.errors import UserError
from vp3d.system.files import read_json_object
from vp3d.weights.locate import read_whole
from vp3d.weights.model_settings import offline
from vp3d.weights.readable import readable

import transformers  # isort: skip

TYPES = ("idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "smolvlm")
MAX_TOKENS = 512  # of an answer
DIGITS = 8  # of the fingerprint in the name


class LocalChat:
    """The model of a folder; a `vp3d.metrics.hallucination_judge.Chat`.

    Args:
        folder: the folder.
        device: where it runs; it is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UserError: a file is missing, damaged or of a model that is not read.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        if (kind := model_type(folder)) not in TYPES:
            raise UserError(f"--judge {folder} is of type {kind}, and none of {', '.join(TYPES)}")
        half = torch.device(device).type == "cuda"
        options = {"local_files_only": True}
        with readable(f"the judge {folder}", "--judge"), offline():
            transformers.utils.logging.disable_progress_bar()
            model = read_whole(
                transformers.AutoModelForImageTextToText,
                folder,
                dtype=torch.bfloat16 if half else torch.float32,
                **options,
            )
            self.processor = transformers.AutoProcessor.from_pretrained(
                folder, trust_remote_code=False, **options
            )
            if not getattr(self.processor, "chat_template", None):
                raise ValueError("its processor has no chat template")
        self.net: Any = freeze(model).to(device)
        self.model = f"{folder.name} {fingerprint(folder)}"

    @torch.no_grad()
    def ask(
        self,
        text: str,
        pictures: Sequence[Image.Image] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """The answer to a text about pictures, the most likely word each time.

        Args:
            text: the question.
            pictures: shown before it, in this order.
            schema: not used: the text asks for the form.

        Raises:
            UserError: the model cannot be run on them.
        """
        content: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
        content.append({"type": "text", "text": text})
        message = [{"role": "user", "content": content}]
        with readable(f"an answer of {self.model}", "--judge"):
            prompt = self.processor.apply_chat_template(message, add_generation_prompt=True)
            inputs = self.processor(text=prompt, images=list(pictures) or None, return_tensors="pt")
            inputs = inputs.to(self.net.device, self.net.dtype)
            found = self.net.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
            new = found[:, inputs["input_ids"].shape[1] :]
            answer: str = self.processor.batch_decode(new, skip_special_tokens=True)[0]
        return answer.strip()


def model_type(folder: Path) -> str:
    """What a folder of transformers says it is; "" if it does not say.

    Raises:
        UserError: it has no readable `config.json`.
    """
    with readable(f"the judge {folder}", "--judge"):
        found = read_json_object(folder / "config.json").get("model_type", "")
    return found if isinstance(found, str) else ""


def fingerprint(folder: Path) -> str:
    """A short name of a folder's contents: its settings; names, sizes and times of its files."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.iterdir()):
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:DIGITS]
