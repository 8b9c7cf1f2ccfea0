"""Profiles by free memory, and a run that goes on after memory ran out, forward and backward, as if
it never had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.listening import Listener, journal_of
from tests.helpers.towards_red import NOTHING, Terms, TowardsRed
from vp3d import build
from vp3d.config.identity import stage_settings
from vp3d.config.schema import Config
from vp3d.errors import OutOfMemoryError
from vp3d.fields.nerf import build_field
from vp3d.guidance.vp_sds import Target
from vp3d.render.volume import DENSE
from vp3d.runs.folder import RunFolder
from vp3d.system.memory import (
    GIB,
    PROFILES,
    FittedSettings,
    Profile,
    fit_to_memory,
    free_memory_gb,
    profile_for,
)
from vp3d.train import loop
from vp3d.train.coarse import Coarse
from vp3d.train.generators import make_generator, make_generators


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (0.5, 0.0),
        (6.7, 0.0),
        (6.9, 8.0),
        (10.1, 8.0),
        (10.3, 12.0),
        (13.7, 16.0),
        (21.0, 24.0),
        (139.0, 24.0),
    ],
)
def test_profile_by_free_memory(free: float, expected: float) -> None:
    assert profile_for(free).memory_gb == expected
    assert profile_for(free).name == (f"{expected:.0f} GB" if expected else "below 8 GB")


def test_more_memory_never_means_less() -> None:
    for small, large in zip(PROFILES, PROFILES[1:], strict=False):
        assert (
            small.memory_gb < large.memory_gb
            and small.samples < large.samples
            and small.images < large.images
        )
        assert small.pictures <= large.pictures and small.offload_encoders >= large.offload_encoders


def test_fitting_caps_and_never_raises_and_leaves_the_request_alone() -> None:
    config = Config()
    config.render.chunk, config.prior.max_batch, config.visual_prompt.prior.max_batch = 10**7, 3, 99
    before = dataclasses.asdict(config)
    fitted, profile = fit(config, 7.5)
    assert (
        profile.memory_gb == 8.0 and fitted.render.chunk == 2**18 and fitted.prior.offload_encoders
    )
    assert fitted.drawing_prior.offload_encoders and not config.prior.offload_encoders
    assert fitted.prior.max_batch == 3 and fitted.drawing_prior.max_batch == 4
    assert (
        fitted.prior.vae_batch == fitted.drawing_prior.vae_batch == 1
        and config.prior.vae_batch == 64
    )
    assert dataclasses.asdict(config) == before
    config.cuda.memory_gb = 24.0
    fitted, profile = fit(config, 7.5)
    assert (
        profile.memory_gb == 24.0
        and fitted.render.chunk == 6 * 2**20
        and not fitted.prior.offload_encoders
    )
    assert stage_settings(config, "coarse") == stage_settings(
        Config(**{**vars(config), "cuda": Config().cuda}), "coarse"
    )


def test_on_a_cpu_nothing_is_fitted_and_our_march_is_taken() -> None:
    config, cpu = Config(), torch.device("cpu")
    config.cuda.compositor = "nerfacc"
    assert build.fit_to_device(config, cpu).render is config.render
    assert build.choose_march(config.cuda, cpu) is DENSE


@pytest.mark.gpu
def test_memory_that_torch_keeps_counts_as_free() -> None:
    """What one run of a suite leaves in torch's cache must not shrink the profile of the next."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = free_memory_gb(device)
    torch.empty(GIB // 2, dtype=torch.uint8, device=device)  # let go at once, kept by torch
    assert (
        torch.cuda.memory_reserved(device) >= GIB // 2
        and abs(free_memory_gb(device) - before) < 0.1
    )


def small_config(folder: Path, kind: str = "grid") -> Config:
    config = Config(prompt="a red sphere", seed=5, output_dir=str(folder))
    config.field.kind = kind  # type: ignore[assignment]
    config.field.resolution, config.field.levels, config.field.log2_table = 12, 2, 10
    config.render.resolution, config.render.samples, config.render.occupancy_resolution = 16, 12, 8
    config.render.occupancy_every, config.render.occupancy_threshold, config.render.bound_radius = (
        2,
        0.0,
        2.0,
    )  # no cell is empty
    (
        config.optim.steps,
        config.optim.views,
        config.optim.checkpoint_every,
        config.optim.preview_every,
    ) = 6, 2, 3, 50
    return config


class OutOfMemory(TowardsRed):
    """`TowardsRed` that runs out of memory at the given calls, while it computes or when it is
    differentiated.
    """

    def __init__(self, calls: range, backward: bool, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.calls, self.backward = calls, backward
        self.error = error or torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB"
        )

    def reuse(self, rgb: Tensor, pull: Target) -> Terms:
        """The loss of views rgb [B, 3, H, W] in [0, 1], if memory does."""
        terms = super().reuse(rgb, pull)
        if self.used - 1 in self.calls:
            if not self.backward:
                raise self.error
            rgb.register_hook(self.refuse)
        return terms

    def refuse(self, gradient: Tensor) -> Tensor:
        """Run out of memory in the backward pass."""
        raise self.error


def fit(config: Config, free_gb: float) -> tuple[FittedSettings, Profile]:
    """`config` within the profile of a card with that much free memory, and the profile."""
    asked = build.fit_to_device(config, torch.device("cpu"))
    profile = profile_for(config.cuda.memory_gb or free_gb)
    return fit_to_memory(asked, profile), profile


def run_with(
    config: Config,
    guidance: TowardsRed,
    encode_less: Callable[[int], int] = lambda views: 0,
    listener: Listener | None = None,
) -> tuple[RunFolder, dict[str, Tensor], Coarse]:
    run = RunFolder.create(config)
    field = build_field(config.field, make_generator(config.seed, "field"))
    journal = journal_of(run, listener)
    stage = Coarse(
        build.coarse_settings(config),
        field,
        guidance,
        NOTHING,
        {},
        make_generators(config.seed),
        journal.event,
        encode_less=encode_less,
    )
    loop.run(stage, config.optim, config.camera, journal)
    found = loop.load_checkpoint(journal, "coarse")
    assert found is not None
    return run, found.tensors, stage


@pytest.mark.parametrize("step", [2, 3], ids=["estimating", "held"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_out_of_memory_halves_once_and_the_run_is_the_same(
    tmp_path: Path, backward: bool, step: int
) -> None:
    torch.set_num_threads(1)
    _, expected, _ = run_with(small_config(tmp_path / "a"), TowardsRed())
    listener = Listener()
    run, found, stage = run_with(
        small_config(tmp_path / "b"),
        OutOfMemory(range(step, step + 1), backward),
        listener=listener,
    )
    assert [event["chunk"] for event in run.events("out_of_memory")] == [2 * 16 * 16 * 12 // 2]
    assert stage.render_config.chunk == 3072 and stage.config.render.chunk == 1_048_576
    assert listener.lines == ["warning: out of memory: continuing with 3,072 samples at once"]
    assert not run.events("bad_step") and found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], expected[name]) for name in expected
    )  # occupancy and random numbers too


def test_pictures_are_encoded_in_fewer_before_samples_are(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    _, expected, _ = run_with(small_config(tmp_path / "a"), TowardsRed())
    left, listener = [1, 0], Listener()
    run, found, stage = run_with(
        small_config(tmp_path / "b"),
        OutOfMemory(range(2, 4), True),
        lambda views: left.pop(0),
        listener,
    )
    told = [(event.get("images"), event.get("chunk")) for event in run.events("out_of_memory")]
    assert told == [(1, None), (None, 3072)] and stage.render_config.chunk == 3072 and not left
    assert "warning: out of memory: continuing with 1 image(s) at once" in listener.lines
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_smaller_chunks_of_the_torch_route_give_the_same_run_but_for_rounding(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    _, expected, _ = run_with(small_config(tmp_path / "a", "hashgrid"), TowardsRed())
    run, found, stage = run_with(
        small_config(tmp_path / "b", "hashgrid"), OutOfMemory(range(1, 2), True)
    )
    assert stage.render_config.chunk == 3072 and len(run.events("out_of_memory")) == 1
    fields = [name for name in expected if name.startswith("field.")]
    assert fields and all((found[name] - expected[name]).abs().max() < 5e-3 for name in fields)


def test_what_is_halved_is_what_is_evaluated(tmp_path: Path) -> None:
    """Where a quarter of the cells hold matter, the first half is that of a quarter of all places
    on the rays.
    """
    config = small_config(tmp_path)
    config.render.resolution = 32
    field = build_field(config.field, make_generator(5, "field"))
    stage = Coarse(
        build.coarse_settings(config), field, TowardsRed(), NOTHING, {}, {}, lambda *_, **__: None
    )
    stage.occupancy.mask[:2], stage.occupancy.mask[2:] = True, False
    stage.occupancy_before = stage._occupancy_tensors()
    stage.occupancy.mask.fill_(True)  # by the step that failed
    stage.shrink()
    assert stage.render_config.chunk == 2 * 32 * 32 * 12 // 4 // 2


def test_memory_that_never_suffices_ends_in_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"even with 1,536 samples at once.*prior\.max_batch"
    ) as caught:
        run_with(small_config(tmp_path), OutOfMemory(range(0, 99), True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backward", [False, True])
def test_other_errors_are_not_taken_for_it(tmp_path: Path, backward: bool) -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_with(
            small_config(tmp_path),
            OutOfMemory(range(1, 2), backward, RuntimeError("shapes do not match")),
        )
