"""The contract of the service, asked over a socket: errors, guards, keys, ranges, OpenAPI."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.service import ROOT, RunningService
from tests.serve import soak, soak_fuzz
from vp3d.client import ServiceError

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'vp3d[serve]'")


def ask(service: RunningService, path: str, body=None, method=None, token=True, **headers):
    """Status, headers and body of one call; a submit that came too fast is repeated."""
    if token:
        headers.setdefault("Authorization", f"Bearer {service.token}")
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(service.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            found = error.code, error.headers, error.read()
    if b'"too_fast"' in found[2]:  # the burst of the tests before
        time.sleep(int(found[1]["Retry-After"]))
        return ask(service, path, body, method, token, **headers)
    return found


def code_of(answer) -> str:
    assert answer[1]["Content-Type"] == "application/problem+json"
    problem = json.loads(answer[2])
    assert problem["status"] == answer[0]
    assert {"type", "title", "detail", "instance", "request_id"} <= problem.keys()
    return problem["code"]


def test_the_server_never_loads_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path; from vp3d.jobs.store import Store;"
        "from vp3d.serve.app import create_app; from vp3d.serve.server import serve;"
        "from vp3d.serve.settings import ServiceSettings as S;"
        f"p = Path({str(tmp_path)!r}); create_app(S(p), Store(p));"
        "print({'torch', 'numpy', 'trimesh'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_an_idle_server_is_small(service):
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="utf-8")
    assert int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) < 80 * 1024


def test_no_worker_is_not_ready_and_health_needs_no_token(service):
    assert ask(service, "/healthz", token=False)[0] == 200
    assert code_of(ask(service, "/readyz", token=False)) == "not_available"


def test_a_wrong_or_missing_token_is_401(service):
    assert code_of(ask(service, "/v1/jobs", token=False)) == "unauthorized"
    assert ask(service, "/v1/jobs", Authorization="Bearer wrong")[0] == 401
    assert ask(service, "/openapi.json", token=False)[0] == 401
    assert ask(service, "/", token=False)[0] == 200


def test_the_token_becomes_a_cookie(service):
    assert ask(service, "/v1/session", {"token": "wrong"}, token=False)[0] == 401
    status, headers, _ = ask(service, "/v1/session", {"token": service.token}, token=False)
    cookie = headers["Set-Cookie"]
    assert status == 204
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert service.token not in cookie
    assert ask(service, "/v1/jobs", token=False, Cookie=cookie.split(";")[0])[0] == 200


def test_foreign_hosts_and_origins_are_403(service):
    assert code_of(ask(service, "/healthz", Host="evil.example")) == "forbidden_host"
    assert code_of(ask(service, "/healthz", Host=f"evil.example:{service.port}")) == (
        "forbidden_host"
    )
    answer = ask(service, "/v1/queue", {"paused": False}, Origin="http://evil.example")
    assert code_of(answer) == "forbidden_origin"
    assert ask(service, "/v1/queue", {"paused": False}, Origin="null")[0] == 403
    assert ask(service, "/v1/queue", {"paused": False}, Origin=service.url)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"{", 400, "not_json", "JSON"),
        (b'{"prompt": "a", "prompt": "b"}', 400, "not_json", "twice"),
        (b"[]", 422, "invalid", "object"),
        ({"promt": "a cube"}, 422, "invalid", "did you mean prompt"),
        ({"prompt": "a red mushrom"}, 422, "unknown_words", "mushroom"),
        ({"prompt": "a cube", "negative_prompt": "blury"}, 422, "unknown_words", "negative"),
        ({"prompt": "a red cube", "profile": "sd15"}, 422, "missing_weights", "fetch"),
        ({"prompt": "a cube", "settings": {"optim": {"steps": 9}}}, 422, "invalid", "dotted key"),
        ({"prompt": "a red cube", "formats": ["fbx"]}, 422, "bad_request", "usdz"),
        ({"prompt": "a red cube", "settings": {"optim.steps": True}}, 422, "bad_request", "whole"),
        ({"prompt": "a red cube", "seed": 1e30}, 422, "invalid", "seed"),
        ({"prompt": "a red cube\nand"}, 422, "bad_request", "control character"),
        (b'\xef\xbb\xbf{"prompt": "a red cube"}', 400, "not_json", "BOM"),
        (b'{"prompt": "a caf\xe9"}', 400, "not_json", "utf-8"),
        (b"prompt=a+red+cube", 400, "not_json", "JSON"),
        ({"prompt": "a red cube", "seed": "1"}, 422, "invalid", "seed"),
        ({"prompt": "a red cube", "profile": "../sd15"}, 422, "bad_request", "profile"),
        ({"prompt": "a red cube", "image": "/etc/passwd"}, 422, "bad_request", "upload"),
        ({"prompt": "a red cube", "settings": {"prior.path": "/x"}}, 422, "bad_request", "set"),
        ({"prompt": "a red cube", "settings": {"guidance.debias": "/x"}}, 422, "bad_request", ""),
        ({"prompt": "a red cube", "settings": {"optim.steps": 9999}}, 422, "bad_request", "5,000"),
        ({"prompt": "a red cube", "settings": {"export.faces": 0}}, 422, "bad_request", "300,000"),
        ({"prompt": "a red cube", "settings": {"optim.step": 9}}, 422, "bad_request", "steps"),
        ({"prompt": "a red cube " * 30}, 422, "bad_request", "characters"),
        ({"prompt": "a red cube", "negative_prompt": "a " * 27_500}, 422, "bad_request", "55,000"),
        ({"prompt": "a cube", "negative_prompt": "a\tmug"}, 422, "bad_request", "control"),
        (b" " * 70_000, 413, "too_large", "65,536"),
    ],
)
def test_a_bad_submit_is_refused_in_one_line(service, body, status, code, says):
    answer = ask(service, "/v1/jobs", body)
    assert (answer[0], code_of(answer)) == (status, code)
    assert says in json.loads(answer[2])["detail"]


def test_settings_take_lists_of_numbers(service):
    settings = {"export.lods": [1, 0.5, 0.25], "export.formats": ["glb"]}
    made = service.client().submit("a red cube", settings=settings)
    assert made.data["request"]["settings"] == settings


def test_a_head_has_the_headers_of_a_get_and_no_body(service):
    status, headers, body = ask(service, "/v1/info", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(ask(service, "/v1/info")[2])
    assert ask(service, "/v1/jobs/x", method="HEAD")[0] == 404
    assert ask(service, "/v1/events", method="HEAD")[0] == 405  # it has no end


def test_a_trailing_slash_is_no_path_and_no_redirect(service):
    answer = ask(service, "/v1/jobs/", {"prompt": "a red cube"})
    assert (answer[0], code_of(answer)) == (404, "not_found")


def test_a_batch_of_too_many_jobs_is_refused_as_a_whole(service):
    body = {"prompts": ["a red cube"] * 100, "seeds": list(range(64))}
    answer = ask(service, "/v1/batches", body)
    assert (answer[0], code_of(answer)) == (422, "invalid")
    assert "6,400" in json.loads(answer[2])["detail"]


def test_a_key_makes_one_job_and_no_other_body(service):
    client = service.client()
    first = client.submit("a red cube", key="one")
    assert client.submit("a red cube", key="one").id == first.id
    with pytest.raises(ServiceError) as caught:
        client.submit("a blue cube", key="one")
    assert (caught.value.status, caught.value.code) == (422, "key_reused")


def test_a_queued_job_is_cancelled_deleted_and_gone(service):
    client = service.client()
    job = client.submit("a red cube")
    with pytest.raises(ServiceError) as caught:
        job.delete()
    assert caught.value.status == 409
    with pytest.raises(ServiceError) as caught:
        job.cancel(keep=True)
    assert "nothing to keep" in str(caught.value)
    assert job.cancel().status == "cancelled"
    assert [event.name for event in job.events()] == ["status", "end"]
    job.delete()
    with pytest.raises(ServiceError) as caught:
        job.refresh()
    assert (caught.value.status, caught.value.code) == (410, "gone")
    assert not (service.data / "jobs" / job.id).exists()


def test_the_list_goes_page_by_page_and_finds_words(service):
    client = service.client()
    made = [client.submit("a lime cactus", seed=n).id for n in range(5)]
    page = client.call("GET", "/v1/jobs?limit=2&q=CACTUS")
    rest = client.call("GET", f"/v1/jobs?limit=200&q=cactus&cursor={page['next_cursor']}")
    found = [job["id"] for job in page["jobs"] + rest["jobs"]]
    assert found == made[::-1]
    assert code_of(ask(service, "/v1/jobs?cursor=abc")) == "invalid"


def test_the_queue_has_places_and_priorities(service):
    client = service.client()
    for seed in range(60, 63):  # jobs ahead of it
        client.submit("a purple capsule", seed=seed)
    last = client.submit("a red cube")
    before = last.data["queue_position"]
    assert before > 0
    moved = client.call("POST", f"/v1/jobs/{last.id}/priority", {"priority": 9})
    assert moved["queue_position"] == 0


def test_a_prompt_that_is_too_long_is_refused_before_its_words_are_read(service):
    text = "mushrom " * 6875
    began = time.monotonic()
    checked = ask(service, "/v1/prompts/check", {"prompt": text})
    assert "55,000 characters" in json.loads(checked[2])["message"]
    answer = ask(service, "/v1/jobs", {"prompt": "a red cube", "negative_prompt": text})
    assert "negative prompt has 55,000 characters" in json.loads(answer[2])["detail"]
    assert time.monotonic() - began < 4.0  # one such text took more than 8 s


def test_a_batch_is_stored_as_a_whole(service):
    batch = service.client().submit_batch(["a red cube", "a blue mug"], seeds=[0, 1])
    assert batch["counts"] == {"queued": 4}
    shown = service.client().call("GET", f"/v1/batches/{batch['id']}")
    assert [job["prompt"] for job in shown["jobs"]] == ["a red cube"] * 2 + ["a blue mug"] * 2
    stored = [service.client().job(job["id"]).data["request"] for job in shown["jobs"]]
    assert [one["seed"] for one in stored] == [0, 1, 0, 1]
    with pytest.raises(ServiceError, match="mushrom") as caught:
        service.client().submit_batch(["a red cube", "a mushrom"])
    assert caught.value.problem["errors"][0]["pointer"] == "/prompts/1"


def png(size=(40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 30, 20)).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_is_read_again_and_written_as_png(service):
    status, _, body = ask(service, "/v1/uploads", png(), Content_Type="image/png")
    found = json.loads(body)
    assert (status, found["width"], found["height"]) == (201, 40, 30)
    kept = service.data / "uploads" / f"{found['id']}.png"
    assert Image.open(kept).getpixel((0, 0)) == (200, 30, 20)
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="../../a"\r\n\r\n'
    form += png() + b"\r\n--x--\r\n"
    multipart = "multipart/form-data; boundary=x"
    assert json.loads(ask(service, "/v1/uploads", form, Content_Type=multipart)[2]) == found


@pytest.mark.parametrize("data", [b"", b"no picture", png()[:60], b"GIF89a" + bytes(50)])
def test_what_is_no_picture_is_415(service, data):
    answer = ask(service, "/v1/uploads", data, method="POST")
    assert (answer[0], code_of(answer)) == (415, "not_a_picture")


def test_a_host_that_others_reach_needs_a_token(tmp_path):
    command = [sys.executable, "launch.py", "serve", "--host", "0.0.0.0", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--token-file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_page_loads_little_and_nothing_from_elsewhere(service):
    total = 0
    own = [path for path in STATIC.iterdir() if path.is_file()]
    for name in ("", *(f"static/{path.name}" for path in own), "static/three.js"):
        status, headers, body = ask(service, f"/{name}", token=False, Accept_Encoding="gzip")
        assert status == 200
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        total += len(body)
    assert total <= 400_000
    for path in own:
        links = re.findall(r"https?://[^\"'\s]+", path.read_text())
        assert set(links) <= {"http://www.w3.org/2000/svg"}


STATIC = ROOT / "vp3d" / "serve" / "static"


def test_the_openapi_page_is_what_the_documentation_says(service):
    text = (ROOT / "docs" / "reference" / "rest_api.md").read_text()
    documented = set(re.findall(r"^\| `(GET|POST|DELETE) (/[^`]*)` \|", text, re.M))
    api = json.loads(ask(service, "/openapi.json")[2])
    served = {
        (method.upper(), path.replace("{job_id}", "{id}").replace("{batch}", "{id}"))
        for path, methods in api["paths"].items()
        for method in methods
    }
    assert documented == served | {("GET", "/openapi.json")}
    request = api["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    fields = set(request["schema"]["properties"])
    section = text.partition("## Fields of a submit")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == fields


def test_the_problem_codes_are_documented():
    from vp3d.serve.problems import TITLES

    text = (ROOT / "docs" / "reference" / "rest_api.md").read_text()
    assert [code for code in TITLES if f"`{code}`" not in text] == []


def test_a_share_of_the_fuzzed_requests(tmp_path):
    arguments = argparse.Namespace(requests=150, seed=7)
    found = soak_fuzz.fuzz(arguments, tmp_path)
    assert found["ok"], found


@pytest.mark.parametrize("answer", [(0, b""), (500, b""), (503, b""), (404, b"Traceback")])
def test_one_request_without_a_clean_answer_fails_the_row(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(soak_fuzz, "send", lambda *_: answer)
    assert not soak_fuzz.fuzz(argparse.Namespace(requests=1, seed=7), tmp_path)["ok"]


def test_a_share_of_the_submits_under_kills(tmp_path):
    arguments = argparse.Namespace(calls=40, keys=8, seed=7)
    found = soak.submits(arguments, tmp_path)
    assert found["ok"], found
