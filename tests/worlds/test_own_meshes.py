"""Your own meshes: packed, trained on for a few steps, and made into an asset by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from tests.helpers.assets import asset_of
from tests.helpers.tiny_run import write_disc
from vp3d import generate, load_config
from vp3d.build import finish_settings
from vp3d.cli import main
from vp3d.config.paths import ASSETS
from vp3d.embedded import prior_training, train
from vp3d.embedded.picture_training import encode_pictures
from vp3d.errors import UserError
from vp3d.export.glb import write_glb
from vp3d.export.read import read_mesh
from vp3d.metrics.attribute_judge import load_judge
from vp3d.prompt_world import known_worlds
from vp3d.runs.folder import RunFolder, slug
from vp3d.system.files import read_json_object
from vp3d.types import Mesh
from vp3d.worlds import library_data
from vp3d.worlds.library import Library
from vp3d.worlds.mesh_library import load_mesh, save_mesh
from vp3d.worlds.own_meshes import library_mesh, noun_of, pack_folder


def shape(kind: str, rgb: tuple[float, float, float]) -> Mesh:
    made = {
        "box": trimesh.creation.box((0.8, 0.6, 0.4)),
        "ball": trimesh.creation.icosphere(2, 0.5),
        "cone": trimesh.creation.cone(0.4, 0.9),
    }[kind]
    vertices = np.asarray(made.vertices, np.float32)
    colors = np.tile(np.float32(rgb), (len(vertices), 1))
    return Mesh(vertices, np.asarray(made.faces, np.int32), vertex_colors=colors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three meshes of two nouns, as a user keeps them."""
    found = tmp_path_factory.mktemp("meshes")
    write_glb(asset_of(shape("box", (0.8, 0.1, 0.1))), found / "toolbox.glb")
    write_glb(asset_of(shape("ball", (0.1, 0.2, 0.8))), found / "garden-gnome.glb")
    write_glb(asset_of(shape("cone", (0.1, 0.7, 0.2))), found / "garden_gnome_2.glb")
    return found


def test_files_become_a_library_by_their_names(folder: Path, tmp_path: Path) -> None:
    assert pack_folder(folder, tmp_path) == 3
    library = Library(tmp_path)
    assert sorted(library.nouns) == ["garden gnome", "toolbox"]
    assert all(row.paint for row in library.rows) and not library.held_out
    mesh = library.mesh(library.trained["toolbox"][0].name)
    assert np.linalg.norm(mesh.position, axis=1).max() == pytest.approx(0.85, abs=1e-3)
    extent = np.ptp(mesh.position, axis=0)
    np.testing.assert_allclose(extent / extent[0], [1.0, 0.75, 0.5], atol=0.01)


def test_packed_colours_are_those_of_the_corners(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ball = shape("ball", (0.0, 0.0, 0.0))
    colors = rng.uniform(0.0, 1.0, (len(ball.faces), 3)).repeat(3, 0).astype(np.float32)
    vertices = ball.vertices[ball.faces.ravel()]
    mesh = Mesh(
        vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3), vertex_colors=colors
    )
    save_mesh(library_mesh(mesh), tmp_path / "ball.npz")
    found = load_mesh(tmp_path / "ball.npz")
    side = len(found.textures[0])
    x, y = (found.uv[:, 0] * side).astype(int), ((1.0 - found.uv[:, 1]) * side).astype(int)
    decoded = found.textures[0][y, x, :3] / 255.0
    np.testing.assert_allclose(decoded, colors, atol=1 / 32 + 1 / 255)  # half a level of 16


def test_names_and_folders_that_do_not_do_are_refused(tmp_path: Path) -> None:
    assert noun_of(Path("Garden_Gnome-12.obj")) == "garden gnome"
    with pytest.raises(UserError, match="name the file by what it shows"):
        noun_of(Path("0815.glb"))
    with pytest.raises(UserError, match="has no meshes: .* end in .glb, .gltf, .*3mf or .usdz"):
        pack_folder(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="--world takes toybox, household or a folder"):
        train.main(["prior", "--world", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="upscaler is trained on the toybox only"):
        train.main(["upscaler", "--world", str(tmp_path)])


def test_three_meshes_are_trained_on_and_their_words_choose_the_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models see eight pictures: what the asset looks like is not asked."""
    monkeypatch.setattr(library_data, "CHUNK", 8)
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    parts = ["autoencoder", "clip", "judge", "vision_tower", "prior"]
    small = ["--steps", "1", "--chunks", "1", "--batch", "2", "--threads", "1"]
    train.main([*parts, *small, "--world", str(folder), "--data", str(tmp_path / "data")])
    (world,) = (w for w in known_worlds() if w.name == "own")
    assert world.folder.parent == tmp_path / "models" / "worlds" and world.resolution == 128
    manifest = world.folder / "MANIFEST.json"
    assert "licence" not in read_json_object(manifest), "nobody knows that of the user's meshes"
    config = load_config(
        "draft",
        prompt="a red garden gnome",
        output_dir=str(tmp_path / "runs"),
        image=str(write_disc(tmp_path / "disc.png")),
        field={"resolution": 20},
        render={"resolution": 32, "samples": 16},
        optim={"steps": 8, "views": 2},
        export={"grid": 24, "faces": 400, "turntable_frames": 4, "turntable_size": 32},
    )
    asset = generate(config)
    stored = (asset.run_dir / "config.yaml").read_text()
    assert str(world.folder / "pipeline") in stored and "embedded: given" in stored
    assert finish_settings(RunFolder(asset.run_dir).config()).licence.startswith("that of ")
    mesh = read_mesh(asset.path("glb"))
    assert len(mesh.faces) > 0 and np.isfinite(mesh.vertices).all()


def test_two_folders_have_data_and_models_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library_data, "CHUNK", 6)
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    (tmp_path / "My Tools").mkdir()
    write_glb(asset_of(shape("box", (0.8, 0.1, 0.1))), tmp_path / "My Tools" / "hammer.glb")
    small = ["--steps", "1", "--chunks", "1", "--batch", "2", "--threads", "1"]
    for meshes in (folder, tmp_path / "My Tools"):
        train.main(["judge", *small, "--world", str(meshes)])
    names = {path.name for path in (tmp_path / "data" / "own").iterdir()}
    assert names == {slug(folder.name), "my-tools"}
    objects = [
        set(load_judge(tmp_path / "models" / "worlds" / name / "judge").values["object_a"])
        for name in (slug(folder.name), "my-tools")
    ]
    assert objects == [{"garden gnome", "toolbox"}, {"hammer"}]
    found = tmp_path / "data" / "own" / "my-tools"
    assert Library(found / "library").nouns == ("hammer",)
    assert (found / "training" / "judge" / "judge.safetensors").is_file()
    assert not (tmp_path / "data" / "own" / "training").exists()


def test_changed_meshes_are_rendered_encoded_and_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_data, "CHUNK", 6)
    readers: list[Path] = []
    monkeypatch.setattr(prior_training, "train_reader", lambda *a: readers.append(a[3]))
    monkeypatch.setattr(prior_training, "PriorLosses", lambda *a, **_: a[3])  # the latents
    models, meshes, data = tmp_path / "models", tmp_path / "meshes", tmp_path / "data"
    shutil.copytree(ASSETS / "pipeline" / "vae", models / "pipeline" / "vae")
    shutil.copytree(folder, meshes)

    def trained_on() -> tuple[np.ndarray, torch.Tensor]:
        words = ["prior", "--world", str(meshes), "--chunks", "1"]
        options = train.parse_options([*words, "--data", str(data), "--models", str(models)])
        pictures = train.pictures_of(options)(0)
        latents = prior_training.prior_losses(
            nn.ModuleDict(), None, pictures, train.PLANS["prior"], data, "cpu", models
        )
        fresh = encode_pictures(pictures, tmp_path / f"{len(readers)}.safetensors", "cpu", models)
        assert torch.equal(latents, fresh)
        return pictures.images[:], latents

    first, latents = trained_on()
    again, kept = trained_on()
    assert np.array_equal(again, first) and torch.equal(kept, latents)
    write_glb(asset_of(shape("cone", (0.8, 0.1, 0.1))), meshes / "toolbox.glb")
    changed, _ = trained_on()
    assert not np.array_equal(changed, first)
    write_glb(asset_of(shape("box", (0.1, 0.8, 0.1))), meshes / "toolbox-2.glb")
    trained_on()
    assert readers[0] == readers[1] and len(set(readers)) == 3
    assert len(list(data.glob("pictures-*"))) == 3


def test_the_command_names_the_words_that_no_world_knows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["a red garden gnome"]) == 2
    printed = capsys.readouterr().err
    assert "unknown words in the prompt" in printed and '"gnome"' in printed
