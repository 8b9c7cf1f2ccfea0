"""The benchmarks count what they state, and each runs at tiny sizes. No time is asserted."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import encodings, peers, render, sds_step, step, timing
from benchmarks.textbook import TextbookField, composite, composite_nerfacc
from vp3d import build
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import CameraConfig, FieldConfig
from vp3d.errors import UserError
from vp3d.fields.hashgrid import PRIMES, HashGridField
from vp3d.guidance.vp_sds import Target
from vp3d.render.camera import camera_rays, sample_cameras
from vp3d.render.volume import ray_bins, render_rays_reference
from vp3d.train import loop

CPU = torch.device("cpu")
QUICK = ["--warmup", "0", "--threads", "1", "--device", "cpu"]


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time

    def work(self, seconds: float) -> None:
        self.time += seconds


class Slow(torch.autograd.Function):
    """The identity; its backward pass takes as many seconds of the hand's clock as summary."""

    @staticmethod
    def forward(ctx, x, hand, seconds):
        ctx.hand, ctx.seconds = hand, seconds
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        ctx.hand.work(ctx.seconds)
        return grad, None, None


def read(path: Path) -> dict:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "git", "cpu", "threads", "torch", "load"} <= found["about"].keys()
    return found


def test_a_moment_counts_for_the_innermost_part() -> None:
    hand = Hand()
    clock = step.PartClock(hand)
    hand.work(1.0)
    with clock.part("compositing"):
        hand.work(2.0)
        with clock.part("field"):
            hand.work(4.0)
        hand.work(8.0)
    with clock.part("log", sealed=True):
        hand.work(16.0)
        with clock.part("field"):
            hand.work(32.0)
    with clock.part("field"):
        hand.work(64.0)
    clock.next_step()
    forward = {part: ways["forward"] for part, ways in clock.steps[0].items() if ways["forward"]}
    assert forward == {"rest": 1.0, "compositing": 10.0, "field": 68.0, "log": 48.0}
    clock.next_step()
    assert not any(seconds for ways in clock.steps[1].values() for seconds in ways.values())


def test_backward_counts_for_the_part_that_made_the_node() -> None:
    hand = Hand()
    clock = step.PartClock(hand)
    clock.next_step()
    x = torch.ones(3, requires_grad=True)
    with clock.part("field"):
        a = Slow.apply(x, hand, 1.0)
        with clock.part("sampling"):
            a = Slow.apply(a, hand, 2.0)
        a = Slow.apply(a, hand, 4.0)
    with clock.part("encoder"):
        b = Slow.apply(a, hand, 8.0)
    loss = Slow.apply(b, hand, 16.0).sum()
    with clock.part("optimiser"):
        clock.backward(loss, torch.Tensor.backward)
        hand.work(32.0)
    clock.next_step()
    backward = {part: ways["backward"] for part, ways in clock.steps[1].items() if ways["backward"]}
    assert backward == {"field": 5.0, "sampling": 2.0, "encoder": 8.0, "rest": 16.0}
    assert clock.steps[1]["optimiser"]["forward"] == 32.0 and torch.equal(x.grad, torch.ones(3))


def test_shares_are_of_all_time_and_medians_of_steps() -> None:
    def one(field: float, encoder: float) -> step.Step:
        seconds = {part: {"forward": 0.0, "backward": 0.0} for part in step.PARTS}
        return seconds | {
            "field": {"forward": field, "backward": field},
            "encoder": {"forward": encoder, "backward": 0.0},
        }

    summary = step.summarise([one(1.0, 2.0), one(2.0, 0.0), one(2.0, 8.0)])
    assert (
        summary["field"]["forward"] == 2.0
        and summary["field"]["both"] == 4.0
        and summary["encoder"]["both"] == 2.0
    )
    assert summary["field"]["share"] == pytest.approx(0.5) and summary["step"]["share"] == 1.0
    assert summary["step"]["both"] == 4.0 and summary["step"]["mean"] == pytest.approx(20.0 / 3.0)


def test_steps_of_one_estimate_are_averaged() -> None:
    steps = [
        {part: {"forward": float(i), "backward": 1.0} for part in step.PARTS} for i in range(7)
    ]
    found = step.per_estimate(steps, 3)
    assert [one["field"]["forward"] for one in found] == [1.0, 4.0] and found[0]["rest"] == {
        "forward": 1.0,
        "backward": 1.0,
    }
    assert step.per_estimate(steps, 1) == steps
    with pytest.raises(UserError, match="--steps 1 is less than guidance.estimate_every=2"):
        step.main(["--steps", "1"])


def test_the_products_step_is_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply, backward = loop.apply, torch.Tensor.backward
    sizes = [
        *"render.resolution=12 render.samples=8 field.resolution=12 optim.views=1".split(),
        *"loss.orientation=0.01 guidance.space=latents guidance.estimate_every=2".split(),
        *"rewards.text_image.begin=0 rewards.image_image.begin=0".split(),
        "rewards.image_image.gate.floor=1",
    ]
    write = ["--write", str(tmp_path / "step.json")]
    step.main(["--preset", "draft", "--steps", "5", *QUICK, *write, *sizes])
    assert loop.apply is apply and torch.Tensor.backward is backward
    found = read(tmp_path / "step.json")["results"]
    assert len(found["steps"]) == 2
    for part in step.PARTS:
        assert all(one[part]["forward"] > 0.0 for one in found["steps"]), part
    for part in ("field", "compositing", "encoder", "rewards", "regularisers", "rest"):
        assert all(one[part]["backward"] > 0.0 for one in found["steps"]), part
    for part in ("sampling", "denoiser", "log"):
        assert all(one[part]["backward"] == 0.0 for one in found["steps"]), part
    shares = [found["parts"][part]["share"] for part in step.PARTS]
    assert sum(shares) == pytest.approx(1.0)
    assert "denoiser" in (shown := capsys.readouterr().out) and "120 of draft take" in shown


def naive_encoding(field: TextbookField, x: torch.Tensor) -> torch.Tensor:
    """Point by point, level by level, corner by corner."""
    rows = []
    for point in x:
        features = []
        for level, resolution in enumerate(field.resolutions.tolist()):
            place = (0.5 * (point + 1.0)) * resolution
            low = place.floor()
            total = torch.zeros(field.table.shape[1])
            for corner in range(8):
                offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
                node = [int(v) for v in low + offset]
                row = (node[0] * PRIMES[0] ^ node[1] * PRIMES[1] ^ node[2] * PRIMES[2]) % field.size
                weight = torch.where(offset.bool(), place - low, 1.0 - (place - low)).prod()
                total = total + weight * field.table[level * field.size + row]
            features.append(total)
        rows.append(torch.cat(features))
    return torch.stack(rows)


def small_textbook() -> TextbookField:
    field = TextbookField(
        FieldConfig(resolution=24, levels=3, log2_table=6), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        field.table.copy_(
            torch.randn(field.table.shape, generator=torch.Generator().manual_seed(1))
        )
    return field


def test_textbook_encoding_is_the_naive_one() -> None:
    field = small_textbook()
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    assert torch.allclose(field.encode(x), naive_encoding(field, x), atol=1e-5)
    sigma, albedo = field(x)
    assert (
        sigma.shape == (20,)
        and albedo.shape == (20, 3)
        and bool((sigma > 0.0).all())
        and field.smoothness() > 0.0
    )


@pytest.mark.parametrize("name", ["textbook", "nerfacc"])
def test_peers_render_what_the_reference_does(name: str) -> None:
    field, samples = small_textbook(), 12
    rays = camera_rays(sample_cameras(1, CameraConfig(), torch.Generator().manual_seed(0)), 6, 6)
    start, spacing = ray_bins(rays, samples, torch.Generator().manual_seed(3))
    expected = render_rays_reference(field, rays, start, spacing, samples).over(
        torch.full((3,), 0.7)
    )
    if name == "textbook":
        found = composite(field, rays, start, spacing, samples, 0.7)
    else:
        nerfacc = pytest.importorskip("nerfacc")
        found = composite_nerfacc(nerfacc, field, rays, start, spacing, samples, 0.7)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_time_to_a_target_is_interpolated_between_judgements() -> None:
    ours = peers.Curve([1.0, 1.0, 1.0, 1.0], [(0, 5.0), (2, 18.0), (4, 17.0)])
    peer = peers.Curve([5.0, 4.0, 5.0, 6.0], [(0, 5.0), (2, 10.0), (4, 16.0)])
    assert ours.seconds_to(18.0) == 2.0 and ours.seconds_to(11.5) == 1.0
    assert ours.seconds_to(5.0) == 0.0 and ours.best == 18.0
    assert peer.seconds_to(16.5) is None and peer.seconds_to(13.0) == 9.0 + 0.5 * 11.0
    summary = peers.summarise({"ours": ours, "textbook": peer}, 16.0)
    assert summary["ours"]["target"] == 16.0 and summary["ours"]["psnr"] == 17.0
    assert summary["ours"]["to_target_s"] == pytest.approx(2.0 * 11 / 13)
    assert summary["textbook"]["to_target_s_ratio"] == pytest.approx(20.0 / (22 / 13))
    assert summary["textbook"]["step_s_ratio"] == 5.0
    missed = peers.summarise({"ours": ours, "textbook": peer}, 16.5)["textbook"]
    assert missed["to_target_s"] is None and missed["to_target_s_ratio"] is None


def test_the_ratio_does_not_depend_on_how_often_is_looked() -> None:
    """Two arms whose PSNR rises with the logarithm of time, one of them ten times slower."""

    def course(step_s: float, steps: int, looks: int) -> peers.Curve:
        judged, number = [(0, 0.0)], 0
        while number < steps:
            number = min(peers.next_judgement(number, looks), steps)
            judged.append((number, 5.0 * math.log2(1.0 + number * step_s)))
        return peers.Curve([step_s] * steps, judged)

    for looks in (2, 4, 8, 16):
        curves = {"ours": course(0.01, 4000, looks), "textbook": course(0.1, 400, looks)}
        ratio = peers.summarise(curves, 15.0)["textbook"]["to_target_s_ratio"]
        assert ratio == pytest.approx(1.0, rel=0.06), "equal courses in time"
        ten = {"ours": course(0.1, 4000, looks), "textbook": course(0.1, 400, looks)}
        slow = peers.Curve([1.0] * 400, ten["textbook"].psnr)
        ratio = peers.summarise({"ours": ten["ours"], "slow": slow}, 15.0)["slow"]
        assert ratio["to_target_s_ratio"] == pytest.approx(10.0, rel=0.06)


def test_judgements_are_dense_from_the_first_step() -> None:
    found = [0]
    while found[-1] < 1000:
        found.append(peers.next_judgement(found[-1], 8))
    assert found[:10] == list(range(10))
    shares = [b / a for a, b in zip(found[12:], found[13:], strict=False)]
    assert max(shares) <= 2 ** (1 / 8) + 0.001 and len(found) < 75


def test_arms_that_miss_the_target_are_named() -> None:
    slow = peers.Curve([2.0, 2.0], [(0, 1.0), (1, 3.0), (2, 2.5)])
    fast = peers.Curve([1.0, 1.0], [(0, 1.0), (1, 21.0), (2, 22.0)])
    trivial = peers.Curve([1.0], [(0, 30.0), (1, 31.0)])
    fine = peers.Curve([1.0] * 3, [(0, 1.0), (1, 12.0), (3, 25.0)])
    notes = peers.target_notes({"a": slow, "b": fast, "c": trivial, "d": fine}, 20.0)
    assert len(notes) == 3
    assert "a missed 20.0 dB in its 4.0 s; its best was 3.0 dB" in notes[0]
    assert "b reached 20.0 dB within the first step" in notes[1]
    assert "c reached 20.0 dB before the first step" in notes[2]


def test_a_nerfacc_that_wants_to_build_kernels_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its later versions do at the first call, even on a CPU."""

    def rendering(*_: object, **__: object) -> None:
        raise OSError("CUDA_HOME environment variable is not set")

    monkeypatch.setitem(sys.modules, "nerfacc", types.SimpleNamespace(rendering=rendering))
    assert timing.find_nerfacc()[1].startswith(
        "nerfacc does not work here (CUDA_HOME environment variable is not set)"
    )
    monkeypatch.setattr(sys.modules["nerfacc"], "rendering", lambda *_, **__: ())
    assert timing.find_nerfacc() == (sys.modules["nerfacc"], "")


def test_every_peer_learns_the_scene(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_nerfacc", lambda: (None, "nerfacc does not import here"))
    sizes = "--rays 192 --samples 16 --resolution 16 --views 4 --held-out 1 --size 24".split()
    peers.main(
        ["--steps", "24", *sizes, *QUICK, "--looks", "1", "--write", str(tmp_path / "peers.json")]
    )
    found = read(tmp_path / "peers.json")
    assert list(found["results"]) == ["ours", "hashgrid", "textbook"]
    left_out = [note for note in found["notes"] if "is left out" in note]
    assert len(left_out) == 2
    for arm in found["results"].values():
        assert arm["psnr"][-1][1] > arm["psnr"][0][1] + 2.0 and len(arm["step_s"]) == 24
        assert [steps for steps, _ in arm["psnr"]] == [0, 1, 2, 4, 8, 16, 24]
    assert "grid-nerfacc is left out" in capsys.readouterr().out
    short = ["--seconds", "0.2", "--arms", "ours", "--looks", "2", "--target", "1"]
    peers.main([*short, *sizes, *QUICK, "--write", str(tmp_path / "peers.json")])
    assert "ours reached 1.0 dB before the first step" in capsys.readouterr().out
    ours = read(tmp_path / "peers.json")["results"]["ours"]
    assert sum(ours["step_s"]) >= 0.2 > sum(ours["step_s"][:-1]) and ours["psnr"][-1][0] == len(
        ours["step_s"]
    )


def test_a_scene_outside_the_toybox_is_one_line() -> None:
    with pytest.raises(UserError, match="not a toybox caption: 'nope'"):
        peers.main(["nope"])


def test_targets_are_the_pictures_from_those_cameras() -> None:
    views = peers.take_views("a red sphere", 2, 16, 0.0, CameraConfig())
    assert len(views.rays) == 2 * 16 * 16 and views.rgb.shape == (512, 3)
    middle = views.rgb.reshape(2, 16, 16, 3)[:, 8, 8]
    corner = views.rgb.reshape(2, 16, 16, 3)[:, 0, 0]
    assert bool((middle[:, 0] > 2.0 * middle[:, 1]).all()), "red"
    assert torch.allclose(corner, torch.tensor(peers.BACKGROUND), atol=0.01)


def test_encodings_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "encodings.json"
    encodings.main(
        [*"--points 64 200 --resolution 16 --repeats 1".split(), *QUICK, "--write", str(path)]
    )
    found = read(path)
    assert [(r["points"], r["backend"]) for r in found["results"]] == [
        (points, name)
        for points in (64, 200)
        for name in ("grid", "hash grid", "textbook", "grid, compiled")
    ]
    assert all(r["forward"] > 0.0 and r["both"] > 0.0 for r in found["results"])
    assert "tiny-cuda-nn is left out: no GPU here" in capsys.readouterr().out


def test_look_ups_of_the_gpu_module_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = types.ModuleType(encodings.ENCODERS_MODULE)
    fast.ENCODERS = {"triton": "triton", "other": "other"}
    fast.attach = lambda field, name, dtype: "" if name == "triton" else f"{name} is not installed"
    monkeypatch.setattr(encodings.importlib, "import_module", lambda name: fast)
    monkeypatch.setattr(HashGridField, "to", lambda self, device: self)  # there is no GPU to go to
    fields, notes = encodings.cuda_fields(
        FieldConfig("hashgrid", 16, 2, log2_table=6), torch.device("cuda")
    )
    assert list(fields) == ["hash grid, triton float16", "hash grid, triton float32"]
    assert notes == [
        f"hash grid, other {d} is left out: other is not installed" for d in ("float16", "float32")
    ]


def test_render_runs(tmp_path: Path) -> None:
    sizes = "--views 1 --size 8 --samples 8 --resolution 12 --repeats 1".split()
    render.main([*sizes, *QUICK, "--write", str(tmp_path / "render.json")])
    ways = [record["way"] for record in read(tmp_path / "render.json")["results"]]
    assert ways[:4] == ["product", "torch", "torch, all", "textbook"]
    render.main([*sizes, *QUICK, "--normals", "--write", str(tmp_path / "render.json")])
    assert [record["way"] for record in read(tmp_path / "render.json")["results"]] == [
        "product",
        "torch",
        "torch, all",
    ]


def test_tiny_is_the_full_size_but_for_its_widths() -> None:
    tiny, full = sds_step.TINY_UNET, sds_step.UNET
    assert tiny.keys() == full.keys() and tiny["down_block_types"] == full["down_block_types"]


def test_operations_are_those_of_products_and_their_gradients() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    assert sds_step.operations(lambda: (a.detach() @ b).exp()) == 2 * 3 * 5 * 7
    assert sds_step.operations(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 5 * 7)


def test_counting_operations_does_not_keep_a_network_from_being_compiled() -> None:
    torch.compiler.reset()
    field, traced = (
        TextbookField(FieldConfig(levels=1, log2_table=8), torch.Generator().manual_seed(0)),
        [],
    )
    field.compile(backend=lambda graph, _: traced.append(graph) or graph.forward)
    assert sds_step.operations(lambda: field(torch.zeros(3, 3))) > 0 and not traced
    field(torch.zeros(3, 3))
    assert traced
    torch.compiler.reset()


def test_attention_counts_on_a_cpu_as_well() -> None:
    heads = torch.randn(2, 4, 16, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    product = 2 * (2 * 4) * 16 * 16 * 8
    assert sds_step.operations(lambda: attend(heads, heads, heads)) == 2 * product
    leaf = heads.clone().requires_grad_()
    both = sds_step.operations(lambda: attend(leaf, leaf, leaf).sum().backward())
    assert both == 2 * product + 5 * product  # the backward pass computes the scores again


def test_sds_step_runs_the_guidance_and_its_calls_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sds.json"
    common = ["--repeats", "1", *QUICK, "--resolution", "32", "--write", str(path)]
    sds_step.main(["--batch", "1", "2", *common])
    sizes = read(path)["results"]["sizes"]
    # Each view has a null and a full branch.
    assert [(s["batch"], s["calls"], s["images"]) for s in sizes] == [(1, 1, 2), (2, 1, 4)]
    assert all(s[key] > 0 for s in sizes for key in ("step", "guidance", "floor", "encoder"))
    assert all(s["peak_bytes"] >= 0 for s in sizes)
    one, two = ([s["operations"], s["floor_operations"]] for s in sizes)
    assert two == [2 * count for count in one] and one[0] > one[1] > 0
    shown = capsys.readouterr().out
    assert "this was --tiny" in shown
    heads, first = (
        [line.split() for line in shown.splitlines() if line.split()[:1] == [word]][0]
        for word in ("prior", "32")
    )
    share = 100 * sizes[0]["floor"] / sizes[0]["step"]
    assert "denoiser" in heads and f"{share:.0f}" in first
    sds_step.main(
        [
            *"--tiny --batch 1 --render 8 16".split(),
            *common,
            "guidance.perp_neg=1",
            "prior.max_batch=2",
        ]
    )
    sizes = read(path)["results"]["sizes"]
    assert [(s["render"], s["calls"], s["images"]) for s in sizes] == [(8, 2, 4), (16, 2, 4)]
    assert "this was" not in capsys.readouterr().out


def test_the_training_step_of_the_benchmark_is_the_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It renders the field, passes as many views to the guidance, and changes the parameters."""
    config = load_config(
        None, [ROOT / "configs" / "sd15.yaml"], [*sds_step.TINY_FIELD, "render.resolution=8"]
    )
    shapes: list[tuple[int, ...]] = []

    def guidance(rgb: torch.Tensor, *_: object) -> tuple[dict[str, torch.Tensor], Target]:
        shapes.append(tuple(rgb.shape))
        return {"sds": rgb.square().mean()}, Target(rgb.detach(), torch.ones(len(rgb)))

    fields = []
    real = build.make_field
    monkeypatch.setattr(
        build, "make_field", lambda *given: fields.append(real(*given)) or fields[0]
    )
    step = sds_step.training_step(guidance, None, config, 3, CPU)
    before = {name: value.clone() for name, value in fields[0].state_dict().items()}
    step()
    assert shapes == [(3, 3, 8, 8)] and config.optim.views != 3
    assert any(
        not torch.equal(value, before[name]) for name, value in fields[0].state_dict().items()
    )
    with pytest.raises(UserError, match="a step is not finite"):
        sds_step.training_step(
            lambda rgb, *_: ({"sds": rgb.sum() * math.nan}, Target(rgb, rgb)), None, config, 1, CPU
        )()


def test_a_size_that_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sds_step, "measure", full)
    found = {"resolution": 512, "render": 64, "batch": 64, **sds_step.attempt(None, None, 64, None)}
    assert sds_step.row_of(found)[:4] == ["512", "64", "64", "out of memory"]


def test_median_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, costs = Hand(), iter([100.0, 100.0, 3.0, 1.0, 2.0])
    monkeypatch.setitem(timing.CLOCKS, "wall", hand)
    bench = timing.Bench(CPU, repeats=3, warmup=2)
    assert bench.seconds(lambda: hand.work(next(costs))) == 2.0


def test_peak_memory_is_what_came_on_top() -> None:
    kept = torch.ones(8 * 2**20)

    def work() -> None:
        torch.ones(16 * 2**20).sum()  # 64 MiB

    assert 60 * timing.MIB < timing.Bench(CPU).peak_bytes(work) < 100 * timing.MIB
    assert len(kept) > 0


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="--warmup"):
        render.main(["--warmup", "-1"])
    with pytest.raises(UserError, match="--seconds 0: give more than 0"):
        peers.main(["--seconds", "0"])
    with pytest.raises(
        UserError,
        match="0 is not a whole number of 1 or more; see `python -m benchmarks.render --help`",
    ):
        render.main(["--repeats", "0"])


@pytest.mark.parametrize("program", [step, peers, encodings, render, sds_step])
def test_help_teaches(program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    shown = capsys.readouterr().out
    assert program.__doc__.splitlines()[0] in shown and "--clock" in shown
