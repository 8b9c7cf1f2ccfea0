"""The catalogue of published models: their files, hashes and sources.

A config names a model by its name here (`sd15`), by a folder, or by a hub id (`owner/name`);
`./sd15` is always a folder. `models fetch NAME` (vp3d/weights/fetch.py) writes the files of a model
to `models/NAME/`, with `SOURCE.json`, which records the source, size and SHA-256 of each. After
that nothing needs the network.

A source is `hf:OWNER/NAME@REVISION` (at `HF_ENDPOINT` where that is set) or an http(s) address to
which the path of a file is appended. Sources are tried in their order. Hashes are SHA-256; where
one is not known here, the hub's own is checked. Sizes are for progress and free disk space: they
are approximate for files without a hash. Only safetensors, JSON and text are fetched; `pickle`
names the file of a publisher who offers nothing but a pickle.

A source of which we know a commit is pinned to it. The others (`is_pinned` says which) follow a
branch: @main of the hub, `resolve/master` of ModelScope. What a branch gives tomorrow may be
another file, so SOURCE.json records the SHA-256 of each file and, for the hub, the commit that the
branch led to; `models list NAME` marks these sources.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

GB = 1.0e9
PINNED = re.compile(r"@[0-9a-f]{40}$|/resolve/[0-9a-f]{40}(/|$)")


@dataclass(frozen=True)
class File:
    """One file of a model."""

    path: str  # in the folder of the model
    sha256: str = ""  # "" if not known
    size: int = 0  # bytes, approximate; 0 for small files
    remote: str = ""  # path in the source, if different

    @property
    def at_source(self) -> str:
        """The path in the source."""
        return self.remote or self.path


@dataclass(frozen=True)
class Part:
    """Files that come together from one source."""

    files: tuple[File, ...]
    sources: tuple[str, ...]  # in the order they are tried
    # address of the publisher's pickle; only `models convert` reads it, from the user's disk
    pickle: str = ""


@dataclass(frozen=True)
class Model:
    """A published model."""

    purpose: str
    licence: str
    parts: tuple[Part, ...]
    # (path, content) of small files that VP3D writes itself
    written: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """All files to fetch."""
        return tuple(file for part in self.parts for file in part.files)

    @property
    def size(self) -> int:
        """Bytes to fetch, without small files."""
        return sum(file.size for file in self.files)


def is_pinned(source: str) -> bool:
    """Whether a source of the catalogue names a commit, and not a branch that may move.

    Example:
        >>> is_pinned("hf:madebyollin/taesd@main")
        False
    """
    return PINNED.search(source) is not None


def _plain(*paths: str) -> tuple[File, ...]:
    """Small files without a known hash."""
    return tuple(File(path) for path in paths)


_CLIP_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
# A mirror that we have not checked: weights must match their hashes, configs have none.
_MIRROR = "https://modelscope.cn/models/AI-ModelScope"
_SD15 = (
    "hf:stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    f"{_MIRROR}/stable-diffusion-v1-5/resolve/master",
)
_SDXL = (
    "hf:stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b",
    f"{_MIRROR}/stable-diffusion-xl-base-1.0/resolve/master",
)
_CLIP_B_32 = "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K@1a25a446712ba5ee05982a381eed697ef9b435cf"
_BERT = "hf:google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
_IP_ADAPTER = (
    "hf:h94/IP-Adapter@018e402774aeeddd60609b4ecdb7e298259dc729",
    f"{_MIRROR}/IP-Adapter/resolve/master",
)
_VIT_H = (  # the image encoder of all IP-Adapters in the catalogue
    File("models/image_encoder/config.json"),
    File(
        "models/image_encoder/model.safetensors",
        "6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030",
        2_528_373_448,
    ),
)
_VIT_H_14 = {  # the config of open_clip's ViT-H-14, of which HPSv2 is a fine-tuned copy
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 32,
            "width": 1280,
            "head_width": 80,
            "patch_size": 14,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 1024,
            "heads": 16,
            "layers": 24,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
    },
}
_CONVERTED = (  # safetensors that others converted from the publishers' pickles
    "https://modelscope.cn/models/DiffSynth-Studio/QualityMetric_reward_pretrained/resolve/master"
)

MODELS: dict[str, Model] = {
    "sd15": Model(
        "Stable Diffusion 1.5: draws and distils (prior.path)",
        "CreativeML OpenRAIL-M",
        (
            Part(
                (
                    *_plain("model_index.json", "scheduler/scheduler_config.json"),
                    *_plain("feature_extractor/preprocessor_config.json"),
                    *_plain(*(f"tokenizer/{name}" for name in _CLIP_TOKENIZER)),
                    *_plain("text_encoder/config.json", "unet/config.json", "vae/config.json"),
                    File(
                        "text_encoder/model.safetensors",
                        "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
                        492_265_874,
                    ),
                    File(
                        "unet/diffusion_pytorch_model.safetensors",
                        "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
                        3_438_167_540,
                    ),
                    File(
                        "vae/diffusion_pytorch_model.safetensors",
                        "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
                        334_643_276,
                    ),
                ),
                _SD15,
            ),
        ),
    ),
    "ip-adapter-sd15": Model(
        "IP-Adapter for SD 1.5, base and plus, with its image encoder (prior.ip_adapter)",
        "Apache-2.0",
        (
            Part(
                (
                    *_VIT_H,
                    File(
                        "models/ip-adapter_sd15.safetensors",
                        "289b45f16d043d0bf542e45831f971dcdaabe18b656f11e86d9dfba7e9ee3369",
                        44_642_768,
                    ),
                    File(
                        "models/ip-adapter-plus_sd15.safetensors",
                        "a1c250be40455cc61a43da1201ec3f1edaea71214865fb47f57927e06cbe4996",
                        98_183_288,
                    ),
                ),
                _IP_ADAPTER,
            ),
        ),
    ),
    "sdxl": Model(
        "Stable Diffusion XL base 1.0, half precision: draws and distils (prior.path)",
        "CreativeML OpenRAIL++-M",
        (
            Part(
                (
                    *_plain("model_index.json", "scheduler/scheduler_config.json"),
                    *_plain(*(f"tokenizer/{name}" for name in _CLIP_TOKENIZER)),
                    *_plain(*(f"tokenizer_2/{name}" for name in _CLIP_TOKENIZER)),
                    *_plain("text_encoder/config.json", "text_encoder_2/config.json"),
                    *_plain("unet/config.json", "vae/config.json"),
                    File(
                        "text_encoder/model.safetensors",
                        "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
                        246_144_152,
                        "text_encoder/model.fp16.safetensors",
                    ),
                    File(
                        "text_encoder_2/model.safetensors",
                        "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
                        1_389_382_176,
                        "text_encoder_2/model.fp16.safetensors",
                    ),
                    File(
                        "unet/diffusion_pytorch_model.safetensors",
                        "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139",
                        5_135_149_760,
                        "unet/diffusion_pytorch_model.fp16.safetensors",
                    ),
                    File(
                        "vae/diffusion_pytorch_model.safetensors",
                        "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68",
                        167_335_342,
                        "vae/diffusion_pytorch_model.fp16.safetensors",
                    ),
                ),
                _SDXL,
            ),
        ),
    ),
    "ip-adapter-sdxl": Model(
        "IP-Adapter for SDXL, ViT-H base and plus, with its image encoder (prior.ip_adapter)",
        "Apache-2.0",
        (
            Part(
                (
                    *_VIT_H,
                    File(
                        "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
                        "ebf05d918348aec7abb02a5e9ecef77e0aaea6914a5c4ea13f50d45eb1681831",
                        698_391_064,
                    ),
                    File(
                        "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
                        "3f5062b8400c94b7159665b21ba5c62acdcd7682262743d7f2aefedef00e6581",
                        847_517_512,
                    ),
                ),
                _IP_ADAPTER,
            ),
        ),
    ),
    "taesd": Model(
        "small autoencoder for the latents of SD 1.5 (prior.vae)",
        "MIT",
        (
            Part(
                _plain("config.json", "diffusion_pytorch_model.safetensors"),
                ("hf:madebyollin/taesd@main",),
            ),
        ),
    ),
    "taesdxl": Model(
        "small autoencoder for the latents of SDXL (prior.vae)",
        "MIT",
        (
            Part(
                _plain("config.json", "diffusion_pytorch_model.safetensors"),
                ("hf:madebyollin/taesdxl@main",),
            ),
        ),
    ),
    "bert-base": Model(
        "BERT base, uncased: finds words that contradict a view (guidance.debias)",
        "Apache-2.0",
        (
            Part(
                (
                    *_plain("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
                    File("model.safetensors", size=440_449_768),
                ),
                (_BERT,),
            ),
        ),
    ),
    "imagereward": Model(
        "ImageReward-v1.0: scores how well a picture fits a text (rewards.imagereward)",
        "Apache-2.0",
        (
            Part(
                (
                    File(
                        "model.safetensors",
                        size=1_790_000_000,
                        remote="ImageReward/ImageReward.safetensors",
                    ),
                ),
                (_CONVERTED,),
                "https://huggingface.co/zai-org/ImageReward: ImageReward.pt",
            ),
            Part(
                (
                    File(
                        "vocab.txt",
                        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                        231_508,
                    ),
                ),
                (
                    _BERT,
                    f"{_CONVERTED}/bert-base-uncased",
                ),
            ),
        ),
    ),
    "hpsv2.1": Model(
        "HPSv2.1: the same, with a fine-tuned CLIP ViT-H-14 (rewards.hpsv2)",
        "Apache-2.0",
        (
            Part(
                (
                    File(
                        "open_clip_model.safetensors",
                        size=1_972_000_000,
                        remote="HPS_v2/HPS_v2.1_compressed.safetensors",
                    ),
                ),
                (_CONVERTED,),
                "https://huggingface.co/xswu/HPSv2: HPS_v2.1_compressed.pt",
            ),
        ),
        (("open_clip_config.json", json.dumps(_VIT_H_14, indent=2) + "\n"),),
    ),
    "pickscore": Model(
        "PickScore v1: the same, with another fine-tuned CLIP ViT-H-14 (rewards.pickscore)",
        "MIT (the code; none is given for the weights)",
        (
            Part(
                (
                    *_plain(
                        "config.json",
                        "preprocessor_config.json",
                        "tokenizer.json",
                        *_CLIP_TOKENIZER,
                    ),
                    File("model.safetensors", size=3_944_000_000),
                ),
                ("hf:yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800",),
            ),
        ),
    ),
    "clip-vit-b32": Model(
        "open_clip ViT-B-32, laion2B: both rewards in little memory (rewards.clip)",
        "MIT",
        (
            Part(
                (
                    File("open_clip_config.json"),
                    File(
                        "open_clip_model.safetensors",
                        "ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6",
                        605_143_316,
                    ),
                ),
                (_CLIP_B_32,),
            ),
        ),
    ),
    "dinov2-base": Model(
        "DINOv2 ViT-B/14: scores how similar two pictures are (rewards.dinov2)",
        "Apache-2.0",
        (
            Part(
                (
                    File("config.json"),
                    File("preprocessor_config.json"),
                    File("model.safetensors", size=346_345_912),
                ),
                ("hf:facebook/dinov2-base@f9e44c814b77203eaa57a6bdbbd535f21ede1415",),
            ),
        ),
    ),
    "aesthetic": Model(
        "LAION's aesthetic head with its CLIP ViT-L/14 (rewards.aesthetic_model)",
        "Apache-2.0 (head), MIT (CLIP)",
        (
            Part(
                (
                    File("config.json"),
                    File("preprocessor_config.json"),
                    File(
                        "model.safetensors",
                        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
                        1_710_540_580,
                    ),
                ),
                ("hf:openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41",),
            ),
            Part(
                (File("head.safetensors", remote="model.safetensors"),),
                ("hf:ttj/sac-logos-ava1-l14-linearMSE@1e77fa05081323d99725fc40a9bf9f88180490e7",),
                "https://github.com/christophschuhmann/improved-aesthetic-predictor: "
                "sac+logos+ava1-l14-linearMSE.pth",
            ),
        ),
    ),
}
