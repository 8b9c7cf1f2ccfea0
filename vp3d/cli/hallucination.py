"""`hallucination`: grade what a picture invented, compared with its reference."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vp3d.cli.arguments import Subparsers
from vp3d.config.addresses import check_address

EXAMPLES = """\
The grade is 1 (nothing invented) to 5 (another object). Blur, noise, JPEG, a shift of a few pixels
and a uniform tone are not invention. Both pictures must show the same scene in the same frame.

With --endpoint a multimodal model is asked as well: THE PICTURES ARE SENT TO THAT SERVER. Its key
is read from the environment variable VP3D_ENDPOINT_KEY. If it gives no valid answer there is no
score, and the reason is printed.

examples:
  python launch.py hallucination --image upscaled.png --reference original.png
  python launch.py hallucination --image render.png --reference photo.jpg --heat-map where.png
  python launch.py hallucination --image a.png --reference b.png \\
      --endpoint http://localhost:8000/v1 --endpoint-model qwen2.5-vl-7b
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
    add("--cache", type=Path, metavar="DIR", help="keep the answers of the endpoint here")


def run(arguments: argparse.Namespace) -> int:
    """Print the grade; write the heat map."""
    check_address(str(arguments.image), "--image")
    check_address(str(arguments.reference), "--reference")
    from vp3d.system.files import check_output

    for option, path in {"--heat-map FILE": arguments.heat_map}.items():
        if path:
            check_output(path.parent, option)
    if arguments.cache:
        check_output(arguments.cache, "--cache DIR")
    from vp3d.metrics.hallucination_judge import MultimodalJudge, in_words
    from vp3d.metrics.scorers import ChatEndpoint

    judge = None
    if arguments.endpoint or arguments.endpoint_model:
        endpoint = ChatEndpoint(arguments.endpoint, arguments.endpoint_model)
        judge = MultimodalJudge(endpoint, arguments.cache)
    from vp3d.picture_check import as_array, hallucination_score, heat_picture

    found = hallucination_score(arguments.image, arguments.reference, judge)
    sys.stdout.write(f"grade {found.grade:.1f} of 5 by features (1 is nothing invented)\n")
    if found.verdict is not None and found.verdict.score is None:
        sys.stdout.write(f"no grade by {arguments.endpoint_model}: {found.verdict.reason}\n")
    elif found.verdict is not None:
        sys.stdout.write(
            f"grade {found.verdict.score:.1f} of 5 by {arguments.endpoint_model}; the two orders "
            f"of the pictures differ by {found.verdict.disagreement:.0f}\n"
        )
        if found.verdict.elements:
            sys.stdout.write(f"invented: {in_words(found.verdict.elements)}\n")
    if arguments.heat_map:
        from PIL import Image

        from vp3d.report.pictures import save_image

        picture = heat_picture(as_array(arguments.image), found.where)
        save_image(Image.fromarray(picture), arguments.heat_map)
        sys.stdout.write(f"{arguments.heat_map}\n")
    return 0
