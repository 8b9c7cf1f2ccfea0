"""Records a run of the product from outside: seconds and memory of each phase, and every step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.timing import Bench
from vp3d import build, finish
from vp3d.config.schema import Config
from vp3d.prompts import strip_view
from vp3d.runs.events import Event, Note, Warning, Watch
from vp3d.system.console import say
from vp3d.system.memory import FittedSettings
from vp3d.train import loop
from vp3d.train.generators import make_generator
from vp3d.visual_prompt.make import drawing_prompt

# Functions of the product -> the phase that their time and memory count for.
PHASES = (
    (build, "use_models", "load"),
    (build, "find_visual_prompt", "prompt"),
    (build, "build_coarse", "field"),
    (finish, "export_field", "export"),
    (finish, "compare_views", "views"),
    (finish, "present", "present"),
)


class Recorder:
    """Records a run: seconds and peak bytes of each phase, and every step.

    It wraps functions of `vp3d.build`, `vp3d.finish` and `vp3d.train.loop` for the rest of this
    process; `watch` hears the messages of the run.

    Args:
        bench: the clock.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.phase = bench, ""
        self.phases: dict[str, dict[str, float]] = {}
        self.steps: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.results: dict[str, Any] = {}  # of the functions of `PHASES`, and of "fit_to_device"
        self.drawn_finite = False
        self.watch = Watch(self._listen)

    def install(self) -> None:
        """Wraps the product's functions."""
        for module, name, phase in PHASES:
            function = self._in_phase(phase, getattr(module, name))
            setattr(module, name, self._with_result(name, function))
        build.fit_to_device = self._with_result("fit_to_device", build.fit_to_device)
        build.find_visual_prompt = self._with_drawing(build.find_visual_prompt)
        loop.run = self._in_phase("steps", loop.run)
        loop.advance = self._with_steps(loop.advance)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts time and memory inside for `phase`."""
        self.phase, device = phase, self.bench.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = self.bench.now()
        try:
            yield
        finally:
            found = {"seconds": self.bench.now() - start}
            if device.type == "cuda":
                found["allocated_bytes"] = torch.cuda.max_memory_allocated(device)
                found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
            self.phases[phase] = found

    def _in_phase(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def wrapper(*args: Any, **options: Any) -> Any:
            with self.during(phase):
                return work(*args, **options)

        return wrapper

    def _with_result(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def wrapper(*args: Any, **options: Any) -> Any:
            self.results[name] = work(*args, **options)
            return self.results[name]

        return wrapper

    def _listen(self, event: Event) -> None:
        if isinstance(event, Note | Warning):
            self.messages.append(event.message)
            say(event.message)

    def _with_steps(self, advance: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            start = self.bench.now()
            numbers, problem = advance(*args)
            self.steps.append({"seconds": self.bench.now() - start, "problem": problem, **numbers})
            return numbers, problem

        return wrapper

    def _with_drawing(self, find: Callable[..., Any]) -> Callable[..., Any]:
        """`find_visual_prompt`, after drawing a picture that the run does not use."""

        def wrapper(
            config: Config, fitted: FittedSettings, models: build.Models, *args: Any
        ) -> Any:
            settings = config.visual_prompt
            prompts = [drawing_prompt(config.prompt, settings)] * settings.candidates
            generator = make_generator(config.seed, "visual_prompt")
            with self.during("draw"):
                negative = strip_view(config.negative_prompt)
                drawn = models.prior.sample(
                    prompts, negative, settings.steps, settings.guidance_scale, generator
                )
                self.drawn_finite = bool(drawn.isfinite().all())
                del drawn
            return find(config, fitted, models, *args)

        return wrapper


def summary(recorder: Recorder) -> dict[str, Any]:
    """What `recorder` recorded, for the JSON; memory in bytes, time in seconds."""
    fitted = recorder.results.get("fit_to_device", Config())
    models, stage = recorder.results.get("use_models"), recorder.results.get("build_coarse")
    lines = [line for line in recorder.messages if line.startswith("hash grid by")]
    encoder = (lines or ["hash grid by torch"])[0]
    chunk, batch = fitted.render.chunk, fitted.prior.max_batch
    return {
        "encoder": encoder.removeprefix("hash grid by "),
        "samples": [chunk, stage.render_config.chunk if stage else chunk],
        "images": [batch, models.prior.max_batch if models else batch],
        "drawn_finite": recorder.drawn_finite,
        "finite_steps": sum(not step["problem"] for step in recorder.steps),
        "steps": recorder.steps,
        "phases": recorder.phases,
        "messages": recorder.messages,
    }
