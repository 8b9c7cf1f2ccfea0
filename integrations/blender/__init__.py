"""VP3D in Blender: a panel that submits a prompt, shows its progress and imports the asset.

It talks to a running service (`vp3d serve`) with `client.py`, which lies next to this file in the
add-on's zip and in vp3d/ in a checkout. Network calls run in a thread; Blender's data is touched by
its timer alone.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import tempfile
import threading
from pathlib import Path

import bpy
import numpy

bl_info = {
    "name": "VP3D: text to 3D",
    "author": "VP3D contributors",
    "version": (0, 2, 0),
    "blender": (3, 4, 0),
    "location": "3D view > sidebar > VP3D",
    "description": "Make textured assets from a prompt on a running VP3D service",
    "category": "Import-Export",
}
EVERY_S = 0.25  # between two looks at the news of the thread


def load_client():
    """The module client.py: of the zip, else of the checkout."""
    here = Path(__file__).resolve().parent
    places = (here / "client.py", here.parents[1] / "vp3d" / "client.py")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ImportError("client.py is missing: build the add-on with make_zip.py")
    name = "vp3d_blender_client"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look it up
        spec.loader.exec_module(module)
    return sys.modules[name]


class Work:
    """One job and the thread that follows it; `news` holds what happened since the last look."""

    def __init__(self) -> None:
        self.news: queue.Queue = queue.Queue()
        self.job = None
        self.thread: threading.Thread | None = None

    def is_running(self) -> bool:
        """Whether a job is followed now."""
        return self.thread is not None and self.thread.is_alive()

    def start(self, url: str, token: str, request: dict) -> None:
        """Submit a request and follow it."""
        self.thread = threading.Thread(target=self._follow, args=(url, token, request), daemon=True)
        self.thread.start()

    def _follow(self, url: str, token: str, request: dict) -> None:
        client = load_client()
        try:
            self.job = client.Client(url, token, tries=4).submit(**request)
            self.news.put(("progress", 0.0, "queued"))
            for event in self.job.events():
                if event.name in ("stage", "step"):
                    left = f"{event.data.get('name') or event.data.get('stage')}"
                    left += f", {event.eta_s:.0f} s left"
                    self.news.put(("progress", event.progress, left))
            self.job.wait()
            with tempfile.NamedTemporaryFile(suffix=".glb", delete=False) as stream:
                path = stream.name
            self.job.download("model.glb", path)
            self.news.put(("done", path, request["prompt"]))
        except (client.ServiceError, client.JobFailed, OSError, ValueError) as error:
            self.news.put(("failed", 0.0, str(error)))


WORK = Work()


class Settings(bpy.types.PropertyGroup):
    """What the panel shows."""

    prompt: bpy.props.StringProperty(name="Prompt", default="a red mushroom with a white stem")
    preset: bpy.props.EnumProperty(
        name="Quality",
        items=[(name, name, "") for name in ("draft", "standard", "high")],
        default="draft",
    )
    seed: bpy.props.IntProperty(name="Seed", min=0)
    url: bpy.props.StringProperty(name="Service", default="http://127.0.0.1:8765")
    token_file: bpy.props.StringProperty(
        name="Token file", subtype="FILE_PATH", description="the file `token` of the data folder"
    )
    progress: bpy.props.FloatProperty(name="Progress", min=0.0, max=1.0, subtype="FACTOR")
    message: bpy.props.StringProperty()


class Submit(bpy.types.Operator):
    """Make the asset and import it when it is done"""

    bl_idname = "vp3d.submit"
    bl_label = "Make and import"
    extra: bpy.props.StringProperty(options={"HIDDEN"})  # JSON of more fields of the request

    def execute(self, context):
        """Start the thread and the timer."""
        import json

        settings = context.scene.vp3d
        if WORK.is_running():
            self.report({"WARNING"}, "a job is running already")
            return {"CANCELLED"}
        token = ""
        if settings.token_file:
            try:
                token = (
                    Path(bpy.path.abspath(settings.token_file)).read_text(encoding="utf-8").strip()
                )
            except OSError as error:
                self.report({"ERROR"}, f"the token file cannot be read: {error}")
                return {"CANCELLED"}
        request = {"prompt": settings.prompt, "preset": settings.preset, "seed": settings.seed}
        WORK.start(settings.url, token, {**request, **json.loads(self.extra or "{}")})
        settings.message, settings.progress = "sent", 0.0
        if not bpy.app.timers.is_registered(look):
            bpy.app.timers.register(look, first_interval=EVERY_S)
        return {"FINISHED"}


class Keep(bpy.types.Operator):
    """Stop and import what there is"""

    bl_idname = "vp3d.keep"
    bl_label = "Stop and keep"

    def execute(self, context):
        """Ask the service in a thread; the job then ends and is imported."""
        job = WORK.job
        if job is None or not WORK.is_running():
            return {"CANCELLED"}
        client = load_client()

        def ask() -> None:
            try:
                client.Client(job.client.url, job.client.token).job(job.id).cancel(keep=True)
            except (client.ServiceError, OSError) as error:
                WORK.news.put(("progress", 0.0, str(error)))

        threading.Thread(target=ask, daemon=True).start()
        return {"FINISHED"}


def look() -> float | None:
    """Show the thread's news; the seconds until the next look, None when there is no more work."""
    settings = bpy.context.scene.vp3d
    while not WORK.news.empty():
        kind, value, text = WORK.news.get()
        if kind == "progress":
            settings.progress, settings.message = max(settings.progress, value), text
        elif kind == "failed":
            settings.message = text
        else:
            settings.progress, settings.message = 1.0, "imported"
            try:
                add_asset(value, text)
            except RuntimeError as error:  # what Blender's operators raise
                settings.message = f"Blender could not import it: {str(error).splitlines()[-1]}"
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            area.tag_redraw()
    return EVERY_S if WORK.is_running() or not WORK.news.empty() else None


def add_asset(path: str, prompt: str) -> None:
    """Import a GLB at the 3D cursor under the prompt's name, and remove the file."""
    if not hasattr(numpy, "bool"):  # the importer of Blender 3.4 uses what numpy 1.24 removed
        numpy.bool = bool
    before = set(bpy.data.objects)
    try:
        bpy.ops.import_scene.gltf(filepath=path)
    finally:
        Path(path).unlink(missing_ok=True)
    for added in set(bpy.data.objects) - before:
        if added.parent is None:
            added.location = bpy.context.scene.cursor.location
        if added.type == "MESH":
            added.name = prompt[:60]


class Panel(bpy.types.Panel):
    """The panel in the sidebar of the 3D view"""

    bl_idname = "VIEW3D_PT_vp3d"
    bl_label = "VP3D"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "VP3D"

    def draw(self, context):
        """Prompt, settings, progress."""
        settings, layout = context.scene.vp3d, self.layout
        for name in ("prompt", "preset", "seed"):
            layout.prop(settings, name)
        if WORK.is_running():
            layout.prop(settings, "progress", slider=True)
            layout.operator(Keep.bl_idname)
        else:
            layout.operator(Submit.bl_idname)
        layout.label(text=settings.message)
        box = layout.box()
        box.prop(settings, "url")
        box.prop(settings, "token_file")


CLASSES = (Settings, Submit, Keep, Panel)


def register() -> None:
    """Called by Blender when the add-on is enabled."""
    load_client()
    for one in CLASSES:
        bpy.utils.register_class(one)
    bpy.types.Scene.vp3d = bpy.props.PointerProperty(type=Settings)


def unregister() -> None:
    """Called by Blender when the add-on is disabled."""
    del bpy.types.Scene.vp3d
    for one in reversed(CLASSES):
        bpy.utils.unregister_class(one)
