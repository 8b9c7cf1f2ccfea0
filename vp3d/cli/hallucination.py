"""`hallucination`: grade what a picture invented, compared with its reference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vp3d.cli.arguments import Subparsers
from vp3d.config.addresses import check_address

if TYPE_CHECKING:
    from vp3d.metrics.hallucination_features import TokenFeatures
    from vp3d.metrics.hallucination_judge import Chat

EXAMPLES = """\
The grade is 1 (nothing invented) to 5 (another object). Blur, noise, JPEG, a shift of a few pixels
and a uniform tone are not invention. Both pictures must show the same scene in the same frame.

With --endpoint a multimodal model is asked as well: THE PICTURES ARE SENT TO THAT SERVER. Its key
is read from the environment variable VP3D_ENDPOINT_KEY. If it gives no valid answer there is no
score, and the reason is printed.

With --judge a model of a local folder is asked as well, in the layout of transformers: a DINOv2 or
a CLIP measures the distance of its features, whose grades are first fitted on planted cases (half a
minute to some minutes; --cache keeps them); a chat model for pictures (idefics3, llava, qwen2_vl,
qwen2_5_vl, smolvlm) answers the same questions as an endpoint, offline.

examples:
  python launch.py hallucination --image upscaled.png --reference original.png
  python launch.py hallucination --image render.png --reference photo.jpg --heat-map where.png
  python launch.py hallucination --image a.png --reference b.png \\
      --endpoint http://localhost:8000/v1 --endpoint-model qwen2.5-vl-7b
  python launch.py hallucination --image a.png --reference b.png \\
      --judge models/dinov2-small --cache answers
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of `hallucination`."""
    parser = subparsers.add_parser(
        "hallucination",
        help="grade what a picture invented",
        description="Grade what picture A shows that its reference B does not support.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="A", help="the picture to grade")
    add("--reference", type=Path, required=True, metavar="B", help="what it should show")
    add("--heat-map", type=Path, metavar="FILE", help="write a PNG of where A differs")
    add("--endpoint", default="", metavar="URL", help="ask a multimodal model there, .../v1")
    add("--endpoint-model", default="", metavar="NAME", help="the model of the endpoint")
    add("--judge", type=Path, metavar="FOLDER", help="ask a model of this folder as well")
    add("--cache", type=Path, metavar="DIR", help="keep answers and tables of grades here")


def run(arguments: argparse.Namespace) -> int:
    """Print the grades; write the heat map."""
    check_address(str(arguments.image), "--image")
    check_address(str(arguments.reference), "--reference")
    from vp3d.system.files import check_output

    if arguments.heat_map:
        check_output(arguments.heat_map.parent, "--heat-map FILE")
    if arguments.cache:
        check_output(arguments.cache, "--cache DIR")
    judges = [open_judge(arguments)] if arguments.judge else []
    if arguments.endpoint or arguments.endpoint_model:
        from vp3d.metrics.scorers import ChatEndpoint

        judges.append(ChatEndpoint(arguments.endpoint, arguments.endpoint_model))
    from vp3d.picture_check import as_array, hallucination_score, heat_picture

    found = hallucination_score(arguments.image, arguments.reference)
    sys.stdout.write(f"grade {found.grade:.1f} of 5 by features (1 is nothing invented)\n")
    for judge in judges:
        sys.stdout.write(further_grade(judge, arguments))
    if arguments.heat_map:
        from PIL import Image

        from vp3d.report.pictures import save_image

        picture = heat_picture(as_array(arguments.image), found.where)
        save_image(Image.fromarray(picture), arguments.heat_map)
        sys.stdout.write(f"{arguments.heat_map}\n")
    return 0


def open_judge(arguments: argparse.Namespace) -> Chat | TokenFeatures:
    """The judge of --judge, on the GPU if there is one."""
    check_address(str(arguments.judge), "--judge")
    import torch

    from vp3d.metrics.hallucination_folder import load_folder_judge

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_folder_judge(arguments.judge.expanduser(), device)


def further_grade(judge: Chat | TokenFeatures, arguments: argparse.Namespace) -> str:
    """The lines about the grade by another judge than the embedded features."""
    from vp3d.metrics.hallucination_features import TokenFeatures
    from vp3d.metrics.hallucination_judge import MultimodalJudge, in_words
    from vp3d.picture_check import Yardstick, as_array, hallucination_score

    if isinstance(judge, TokenFeatures):
        from vp3d.evaluate.planted import table_of
        from vp3d.metrics.local_chat import fingerprint

        folder = judge.tower.folder
        table = table_of(judge, arguments.cache, f"{folder.name}-{fingerprint(folder)}")
        pictures = arguments.image, arguments.reference
        found = hallucination_score(*pictures, yardstick=Yardstick(judge, table))
        return f"grade {found.grade:.1f} of 5 by the features of {folder.name}\n"
    pair = as_array(arguments.image), as_array(arguments.reference, "--reference")
    verdict = MultimodalJudge(judge, arguments.cache).score(*pair)
    if verdict.score is None:
        return f"no grade by {judge.model}: {verdict.reason}\n"
    lines = (
        f"grade {verdict.score:.1f} of 5 by {judge.model}; the two orders of the pictures differ "
        f"by {verdict.disagreement:.0f}\n"
    )
    return lines + (f"invented: {in_words(verdict.elements)}\n" if verdict.elements else "")
