# SPDX-License-Identifier: Apache-2.0
"""Names, origins, tokens, headers, uploads: what a stranger can send to a server."""

from __future__ import annotations

import json

import pytest

from aapt_fast.serve import protocol
from aapt_fast.serve.security import bearer_token, is_local, require_token, same_token
from aapt_fast.serve.settings import Limits
from aapt_fast.serve.uploads import Uploads

TOKEN = "a-token-of-24-characters"


def test_a_token_is_required_beyond_this_machine():
    for host in ("127.0.0.1", "127.0.0.5", "::1", "localhost"):
        require_token(host, None)
        assert is_local(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ValueError, match=r"^--token: expected a token, as others can reach"):
            require_token(host, None)
        require_token(host, TOKEN)
    for token in ("", "short", "with a space in it ...", "ümlaut-in-the-middle"):
        with pytest.raises(ValueError, match=r"^--token: expected 16 or more"):
            require_token("localhost", token)


def test_tokens_are_compared_as_a_whole():
    assert same_token(TOKEN, TOKEN)
    for other in (None, "", TOKEN[:-1], TOKEN + "x", "ü", "\ud800"):
        assert not same_token(other, TOKEN)
    assert bearer_token(f"Bearer {TOKEN}") == bearer_token(f"bearer  {TOKEN} ") == TOKEN
    assert bearer_token("Basic x") is bearer_token(None) is None


def test_the_token_guards_everything_but_the_page_and_health(make_running, play):
    running = make_running(token=TOKEN)
    for path in ("/v1/model", "/v1/gallery/0.png", "/metrics", "/v1/streams/x/replay"):
        status, body, _ = running.http(path)
        assert status == 401 and json.loads(body)["argument"] == "token"
        assert running.http(path, headers={"Authorization": "Bearer wrong-token-wrong-token"})[0] == 401
        assert running.http(path, headers={"Authorization": f"Bearer {TOKEN}"})[0] in (200, 404)
    for path in ("/", "/health", "/ready"):
        assert running.http(path)[0] == 200
    assert play(running, {"token": TOKEN}).receive()["type"] == "welcome"
    assert play(running, additional_headers={"Authorization": f"Bearer {TOKEN}"}).receive()["type"] == "welcome"
    for hello in ({}, {"token": "wrong"}):
        player = play(running, {"version": 1, **hello})
        assert player.receive()["argument"] == "token"
        with pytest.raises(Exception, match=str(protocol.BAD_TOKEN)):
            player.receive()


def test_other_names_and_other_pages_are_refused(make_running, play):
    running = make_running(origins=("https://friend.example",))
    own = f"127.0.0.1:{running.port}"
    for host, status in ((own, 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 421), ("", 421)):
        assert running.http("/health", headers={"Host": host})[0] == status
    for origin, status in ((f"http://{own}", 200), ("https://friend.example", 200), ("null", 403)):
        assert running.http("/v1/model", headers={"Origin": origin})[0] == status
    for origin in ("https://evil.example", f"http://127.0.0.1:{running.port}0", "http://[", "null"):
        assert running.http("/v1/replays", b"x", {"Origin": origin})[0] == 403
        player = play(running, {}, origin=origin)
        with pytest.raises(Exception, match=str(protocol.BAD_ORIGIN)):
            player.receive()
    assert play(running, origin=f"http://{own}").receive()["type"] == "welcome"


def test_pages_have_a_policy_without_inline_scripts(running):
    _, page, headers = running.http("/")
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert b"<script>" not in page and b"onclick=" not in page and b"://" not in page.replace(b"http://www.w3.org", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../settings.py",
        "/..%2fsettings.py",
        "/%2e%2e/settings.py",
        "/static/../../settings.py",
        "//etc/passwd",
        "/x%00",
    ],
)
def test_no_path_of_a_client_leads_out_of_the_folder(running, path):
    assert running.http(path)[0] in (404, 405)


def test_uploads_are_limited_and_have_random_names(make_running):
    running = make_running(limits=Limits(upload_bytes=2**20, upload_seconds=0.5))
    status, body, _ = running.http("/v1/images", b"x" * 2**20)
    assert status == 200 and len(json.loads(body)["image"]) == 16
    for path in ("/v1/images", "/v1/replays"):
        status, body, _ = running.http(path, b"x" * (2**20 + 1))
        assert status == 413 and json.loads(body)["expected"] == "at most 1 MiB"
        assert running.http(path, b"")[0] == 400
    assert running.http("/v1/gallery/7.png")[0] == 404
    assert running.http("/v1/gallery/x.png")[0] == 422
    assert running.http("/v1/gallery/0.png")[1] == b"png"
    assert json.loads(running.http("/v1/model")[1])["name"] == "fake"
    assert running.http("/v1/streams/nothing/replay")[0] == 404


def test_an_upload_opens_a_stream_and_its_replay_comes_back(running, player):
    image = json.loads(running.http("/v1/images", b"a picture")[1])["image"]
    opened = player.ask("open", first={"image": image})
    assert opened["type"] == "opened" and opened["first"] == {"image": image}
    status, replay, headers = running.http(f"/v1/streams/{opened['key']}/replay")
    assert (status, replay) == (200, b"a replay") and "attachment" in headers["content-disposition"]
    name = json.loads(running.http("/v1/replays", replay)[1])["replay"]
    assert player.ask("open", first={"replay": name})["type"] == "opened"
    assert player.ask("reset", stream=0, first={"replay": name})["argument"] == "first.replay"
    assert player.ask("open", first={"image": name})["argument"] == "first.image"  # a replay is no picture


def test_old_uploads_go():
    uploads = Uploads(count=3, size=100)
    names = [uploads.add("image", bytes(10)) for _ in range(4)]
    assert [uploads.get("image", name) is None for name in names] == [True, False, False, False]
    uploads.add("image", bytes(95))
    assert uploads.bytes == 95 and uploads.get("image", names[3]) is None
