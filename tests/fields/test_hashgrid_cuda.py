"""The choice of an encoder: parity, compiled GPU code, rejected encoders, tiny-cuda-nn."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.gpu_guard import cuda_package_here, installed
from vp3d.config.schema import CudaConfig, FieldConfig
from vp3d.errors import UserError
from vp3d.fields import hashgrid_cuda
from vp3d.fields.hashgrid import HashGridField, table_index

CONFIG = FieldConfig(kind="hashgrid", resolution=24, levels=2, features=2, log2_table=13)
REPOSITORY = Path(__file__).resolve().parents[2]
NO_TRITON = pytest.mark.skipif(not installed("triton"), reason="triton is not installed")


def small_field() -> HashGridField:
    return HashGridField(CONFIG, torch.Generator().manual_seed(0))


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: Triton decides at import whether it interprets."""
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@NO_TRITON
@pytest.mark.slow
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    file = "tests/fields/test_hashgrid_kernels.py"
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


COMPILE = """
import itertools
import json
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vp3d.fields import hashgrid_triton

shared = {"x_ptr": "*fp32", "table_ptr": "*fp16", "resolution_ptr": "*i32"}
gradients = {"grad_ptr": "*fp32", "grad_table_ptr": "*fp32", "grad_x_ptr": "*fp32"}
kernels = (
    (hashgrid_triton._forward, {"out_ptr": "*fp32"}, {}),
    (hashgrid_triton._backward, gradients, {"WANT_X": False}),
    (hashgrid_triton._backward, gradients, {"WANT_X": True}),
)
for (kernel, more, extra), features, capability in itertools.product(kernels, (2, 3), (75, 80, 90)):
    torch.cuda.get_device_capability = lambda device: divmod(capability, 10)
    added = hashgrid_triton.atomic_width(features, torch.device("cuda"))
    columns = added if extra else hashgrid_triton.load_width(features)
    fixed = {"SIZE": 2**14, "FEATURES": features, "COLUMNS": columns, "LEVELS": 8, **extra}
    fixed["BLOCK"] = hashgrid_triton.BLOCK
    signature = {**shared, **more, "count": "i32", **dict.fromkeys(fixed, "constexpr")}
    pointers = [i for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    ordered = {n: signature[n] for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=ordered, constexprs=fixed, attrs=aligned)
    asm = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
    name = f"{kernel.__name__}{' x' if extra.get('WANT_X') else ''}"
    found = {"name": name, "features": features, "for": capability, "ptx": asm["ptx"]}
    print(json.dumps(found | {"size": len(asm["cubin"])}))
"""


@NO_TRITON
@pytest.mark.slow
def test_kernels_compile_for_a_gpu_without_one() -> None:
    done = run_python("-c", COMPILE, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        (made["name"], made["features"], made["for"]): made
        for made in map(json.loads, done.stdout.splitlines())
    }
    assert len(found) == 18 and all(made["size"] > 1000 for made in found.values())
    # No barrier: threads never wait for each other.
    assert not any("bar.sync" in made["ptx"] for made in found.values())
    for capability in (75, 80, 90):  # a row of two halves is one load, a row of three is three
        assert "ld.global.b16" not in found["_forward", 2, capability]["ptx"]
        assert "ld.global.b16" in found["_forward", 3, capability]["ptx"]
    scalar = re.findall(r"(?:atom|red)[.\w]*add\.f32", found["_backward", 2, 80]["ptx"])
    pairs = re.findall(r"(?:atom|red)[.\w]*add\.v2\.f32", found["_backward", 2, 90]["ptx"])
    # One addition for a pair of features where the processor supports it.
    assert len(scalar) == 2 * len(pairs) > 0


@NO_TRITON
def test_how_many_features_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vp3d.fields import hashgrid_triton

    widths = [hashgrid_triton.load_width(features) for features in (1, 2, 3, 4, 6, 8)]
    assert widths == [1, 2, 1, 4, 2, 4]
    gpu = torch.device("cuda")
    for capability, expected in (((8, 9), [1, 1, 1]), ((9, 0), [1, 2, 1]), ((12, 0), [1, 2, 1])):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert [hashgrid_triton.atomic_width(features, gpu) for features in (1, 2, 3)] == expected


def test_a_correct_look_up_passes_and_wrong_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashgrid_cuda, "CHECK_POINTS", 50)
    field = small_field()
    before = field.tables.detach().clone()
    wrong = {
        "": lambda x, tables: field.encode_torch(x, tables.half().float()),
        "its values": lambda x, tables: field.encode_torch(x + 0.01, tables),
        "its gradients": lambda x, tables: (
            field.encode_torch(x, tables.detach()) + 0.0 * tables.sum()
        ),
    }
    for expected, lookup in wrong.items():
        field.lookup = lookup
        found = hashgrid_cuda.check(field, 4.0e-3)
        assert found.startswith(expected) and bool(found) == bool(expected)
    assert torch.equal(field.tables, before) and field.tables.grad is None


def test_not_a_number_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashgrid_cuda, "CHECK_POINTS", 5)
    field = small_field()
    field.lookup = lambda x, tables: field.encode_torch(x, tables) * math.nan
    assert "values differ" in hashgrid_cuda.check(field, 1.0)


def test_what_does_not_work_here_is_passed_over_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    field = small_field()  # on a CPU no kernel can work, whatever is installed
    said = hashgrid_cuda.accelerate(field, CudaConfig())
    assert (
        said.startswith("hash grid by torch (triton: ")
        and field.lookup is None
        and "\n" not in said
    )
    assert hashgrid_cuda.accelerate(field, CudaConfig(encoder="torch")) == "hash grid by torch"
    if not installed("tinycudann"):
        with pytest.raises(
            UserError,
            match="cuda.encoder=tinycudann does not work here .*not installed.*cuda.encoder=auto",
        ):
            hashgrid_cuda.accelerate(field, CudaConfig(encoder="tinycudann"))


def test_encode_goes_through_the_look_up() -> None:
    field = small_field()
    x = torch.rand(5, 3)
    plain = field.encode(x)
    field.lookup = lambda x, tables: 2.0 * field.encode_torch(x, tables)
    assert torch.equal(field.encode(x), 2.0 * plain)


def tcnn_level(
    x: list[float], options: dict[str, str | int | float], rows: int
) -> dict[int, float]:
    """Weight of each row by tiny-cuda-nn's documented scaling, offset, index and hash."""
    base = int(options["base_resolution"])
    scale, size = base - 1.0, rows
    position = [scale * value + 0.5 for value in x]
    low = [math.floor(value) for value in position]
    found: dict[int, float] = {}
    for corner in range(8):
        node = [low[axis] + (corner >> axis & 1) for axis in range(3)]
        weight = math.prod(
            abs((corner >> axis & 1) - 1 + position[axis] - low[axis]) for axis in range(3)
        )
        if base**3 <= size:
            row = node[0] + base * node[1] + base**2 * node[2]
        else:
            row = node[0] ^ (node[1] * 2654435761 % 2**32) ^ (node[2] * 805459861 % 2**32)
        found[row % size] = found.get(row % size, 0.0) + weight
    return found


@pytest.mark.parametrize("resolution", [16, 19, 24, 40])
def test_tiny_cuda_nn_is_asked_for_our_nodes(resolution: int) -> None:
    size, generator = 2**13, torch.Generator().manual_seed(resolution)
    options = hashgrid_cuda.tcnn_options(resolution, 2, size)
    rows = hashgrid_cuda.tcnn_rows(resolution, size)
    assert (
        rows % 8 == 0
        and (rows == size) == ((resolution + 1) ** 3 > size - 8)
        and options["log2_hashmap_size"] == 13
    )
    unit = torch.cat(
        [
            torch.rand(20, 3, generator=generator),
            torch.tensor([[0.0, 0.5, 1.0], [1, 1, 1], [0, 0, 0]]),
        ]
    ).double()
    for point, asked in zip(unit, hashgrid_cuda.tcnn_points(unit, resolution), strict=True):
        cell = (point * resolution).floor().clamp(0, resolution - 1)
        inside = point * resolution - cell
        ours: dict[int, float] = {}
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
            row = int(table_index(cell.long() + bits, resolution, size))
            ours[row] = ours.get(row, 0.0) + float(
                torch.where(bits.bool(), inside, 1 - inside).prod()
            )
        theirs = tcnn_level(asked.tolist(), options, rows)
        for row in ours.keys() | theirs.keys():
            assert ours.get(row, 0.0) == pytest.approx(theirs.get(row, 0.0), abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(
    bool(cuda_package_here("tinycudann")), reason=cuda_package_here("tinycudann") or "it is there"
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tiny_cuda_nn_agrees_with_the_reference(dtype: str) -> None:
    field = small_field().cuda()
    assert hashgrid_cuda.attach(field, "tinycudann", getattr(torch, dtype)) == ""
    assert field.encode(torch.zeros(0, 3, device="cuda")).shape == (0, 4)


def test_the_reference_is_its_own_look_up() -> None:
    field, x = small_field(), torch.rand(7, 3)
    other: Tensor = torch.rand_like(field.tables)
    assert torch.equal(field.encode_torch(x, field.tables.detach()), field.encode(x))
    assert not torch.equal(field.encode_torch(x, other), field.encode(x))
