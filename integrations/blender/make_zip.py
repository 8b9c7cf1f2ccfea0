"""Write vp3d_blender.zip, which Blender installs.

python integrations/blender/make_zip.py [FILE]
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {"__init__.py": HERE / "__init__.py", "client.py": HERE.parents[1] / "vp3d" / "client.py"}


def main(target: Path) -> None:
    """Write the add-on and its client to `target`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in FILES.items():
            archive.write(path, f"vp3d_blender/{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "vp3d_blender.zip"))
