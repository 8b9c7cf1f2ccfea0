"""Jobs on a real worker: progress, choice, keep, cancel, another export, and deaths."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time

import pytest

from tests.helpers.service import TINY
from vp3d.client import ServiceError


def submit(working, prompt="a red cube", **request):
    settings = {**TINY, **request.pop("settings", {})}
    return working.client().submit(prompt, preset="draft", settings=settings, **request)


def until(condition, seconds=900.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.fixture(scope="module")
def finished(working):
    """A job that is over, with everything that was heard of it."""
    job = submit(working, key="finished")
    return job, list(job.events())


def test_a_job_tells_its_stages_in_order_and_ends_once(finished):
    job, events = finished
    names = [event.name for event in events]
    assert names[-1] == "end"
    assert names.count("end") == 1
    stages = [event.data["name"] for event in events if event.name == "stage"]
    assert stages == ["visual_prompt", "coarse", "export", "views", "report"]
    progress = [event.progress for event in events if event.name in ("step", "stage")]
    assert progress == sorted(progress)
    assert job.data["progress"] == 1.0


def test_the_front_view_is_graded_and_its_pictures_are_handed_out(finished, working):
    job, events = finished
    found = job.data["front_view"]
    assert 1.0 <= found["grade"] <= 5.0
    assert found["words"].startswith(f"Grade {found['grade']:.1f} of 5")
    assert "that range" in found["words"]
    assert events[-1].data["front_view"] == found
    names = {one["name"] for one in job.artifacts()}
    assert {"front_prompt.png", "front_render.png", "front_heat.png"} <= names
    assert submit(working, key="finished").data["front_view"] == found


def test_a_stream_continues_after_any_event(finished, working):
    job, events = finished
    middle = events[len(events) // 2].id
    again = [event.id for event in working.client().job(job.id).events(after=middle)]
    assert again == [event.id for event in events if event.id > middle]


def test_artifacts_have_their_hash_and_ranges(finished, working, tmp_path):
    job, _ = finished
    listed = {one["name"]: one for one in job.artifacts()}
    path = job.download("model.glb", tmp_path / "a.glb")
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == listed["model.glb"]["sha256"]
    url = listed["model.glb"]["url"]

    def get(address: str = url, **headers: str):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return working.client()._ask(
            "GET",
            address,
            lambda reply: (reply.status, reply.read(), reply.headers["Content-Range"]),
            headers=names,
        )

    size = len(data)
    assert get(Range="bytes=4-11") == (206, data[4:12], f"bytes 4-11/{size}")
    assert get(Range="bytes=-8")[1] == data[-8:]
    refused = [({"If_None_Match": f'"{listed["model.glb"]["sha256"]}"'}, 304)]
    refused += [({"Range": f"bytes={size}-"}, 416)]
    refused += [
        ({"address": url.replace("model.glb", name)}, 404)
        for name in ("config.yaml", "..%2Fconfig.yaml", "events.jsonl")
    ]
    for asked, status in refused:
        with pytest.raises(ServiceError) as caught:
            get(**asked)
        assert caught.value.status == status


@pytest.mark.slow
def test_another_export_is_a_new_job_and_leaves_the_first_alone(finished):
    job, _ = finished
    before = {one["name"]: one["sha256"] for one in job.artifacts()}
    other = job.export(faces=60, formats=["ply"]).wait()
    names = {one["name"] for one in other.artifacts()}
    assert "model.ply" in names
    assert "model.glb" not in names
    assert {one["name"]: one["sha256"] for one in job.refresh().artifacts()} == before
    with pytest.raises(ServiceError) as caught:
        job.client.call("POST", f"{job.path}/refine", {})
    assert caught.value.code == "not_available"


@pytest.mark.slow
def test_a_chosen_candidate_becomes_the_visual_prompt(working):
    job = submit(working, choose="ask", settings={"visual_prompt.candidates": 3})
    until(lambda: job.refresh().status == "awaiting_choice")
    ours = job.data["candidates"]["chosen"]
    usable = [n for n, score in enumerate(job.data["candidates"]["scores"]) if score is not None]
    other = next((n for n in usable if n != ours), ours)
    with pytest.raises(ServiceError) as caught:
        job.choose(60)
    assert caught.value.status == 422
    job.choose(other).wait()
    folder = next((working.data / "jobs" / job.id).glob("*/visual_prompt"))
    chosen, candidate = folder / "chosen.png", folder / f"candidate_{other}.png"
    assert chosen.read_bytes() == candidate.read_bytes()


LONG = {"optim.steps": 5000, "optim.checkpoint_every": 20}


def has_step(job):
    return (job.refresh().data["stage"] or {}).get("step")


@pytest.mark.slow
def test_stop_and_keep_yields_a_glb_and_can_be_continued(working, tmp_path):
    job = submit(working, settings=LONG)
    until(lambda: has_step(job))
    began = time.monotonic()
    job.cancel(keep=True)
    assert time.monotonic() - began < 1.0
    job.wait()
    assert job.data["stopped_early"]
    assert job.download("model.glb", tmp_path / "kept.glb").read_bytes()[:4] == b"glTF"
    job.resume()
    until(lambda: has_step(job))
    job.cancel()
    until(lambda: job.refresh().status == "cancelled")


@pytest.mark.slow
def test_a_cancelled_job_stops_within_five_seconds(working):
    job = submit(working, settings=LONG)
    until(lambda: has_step(job))
    began = time.monotonic()
    job.cancel()
    until(lambda: job.refresh().status == "cancelled")
    assert time.monotonic() - began < 5.0
    with pytest.raises(ServiceError):
        job.choose(0)


def test_a_killed_worker_and_a_killed_server_change_no_byte(working, finished):
    reference = {one["name"]: one["sha256"] for one in finished[0].artifacts()}
    job = submit(working, key="killed")
    until(lambda: (job.refresh().data["stage"] or {}).get("name") == "coarse")
    for pid in working.worker_pids():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    working.kill()
    working.start()
    job.wait()
    found = {one["name"]: one["sha256"] for one in job.artifacts()}
    assert found["model.glb"] == reference["model.glb"]
    assert job.data["attempts"] >= 2
    assert len(list((working.data / "jobs" / job.id).glob("*/config.yaml"))) == 1


@pytest.mark.slow
def test_runs_of_the_command_line_are_listed_and_exported(working, finished):
    job, _ = finished
    run = next((working.data / "jobs" / job.id).glob("*/config.yaml")).parent
    shutil.copytree(run, working.data / "20260101-000000-a-red-cube-s0")
    client = working.client()

    def listed():
        return [one for one in client.jobs() if one.data["origin"] == "command_line"]

    found = until(listed, 10)[0]
    assert (found.status, found.data["request"]["prompt"]) == ("succeeded", "a red cube")
    assert found.data["front_view"] == job.data["front_view"] is not None
    assert any(one["name"] == "model.glb" for one in found.artifacts())
    exported = found.export(faces=60, formats=["glb"]).wait()
    assert 1.0 <= exported.data["front_view"]["grade"] <= 5.0
    found.delete()
    assert not (working.data / "20260101-000000-a-red-cube-s0").exists()
