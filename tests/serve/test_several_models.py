# SPDX-License-Identifier: Apache-2.0
"""One server with several models: a worker, a place and a page for each."""

from __future__ import annotations

import json

import pytest
from tests.serve.conftest import Running

TOKEN = "sixteen-letters-or-more"


def test_each_model_has_a_worker_and_streams_of_its_own(make_running, play):
    running = make_running(["folder/second.safetensors"])
    first, second = running.workers
    assert [worker._settings.model for worker in running.workers] == ["mini-person", "folder/second.safetensors"]
    assert "step" in play(running).open()
    assert len(first.streams) == 1 and not second.streams
    assert "step" in play(running, place="/models/2").open()
    assert len(first.streams) == 1 and len(second.streams) == 1


def test_the_server_lists_its_models(make_running):
    running = make_running(["other"])
    expected = [{"name": "fake", "path": ""}, {"name": "fake", "path": "models/2/"}]
    for place in ("", "/models/2"):
        assert json.loads(running.http(f"{place}/v1/models")[1]) == expected
        assert running.http(f"{place}/v1/model")[0] == 200
        for path in ("/", "/app.js", "/health", "/ready", "/metrics", "/v1/gallery/0.png"):
            assert running.http(place + path)[0] == 200
    assert running.http("/models/3/v1/model")[0] == 404


def test_it_is_ready_once_all_models_are(make_running):
    running = make_running(["other"])
    running.workers[1].die()
    running.until(lambda: running.http("/ready")[0] == 503)
    assert running.http("/models/2/ready")[0] == 503
    assert running.http("/v1/model")[0] == 200


@pytest.mark.parametrize("place", ["/models/2", "/models/2/", "/models/3"])
def test_the_token_guards_all_of_them(make_running, place):
    running = make_running(["other"], token=TOKEN)
    for path in ("/v1/models", "/v1/model", "/metrics", "/v1/streams/x/replay"):
        assert running.http(place + path)[0] in (401, 404)
    assert running.http("/models/2/v1/model")[0] == 401
    assert running.http("/models/2/v1/model", headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200


def test_all_drain_together(make_running, play):
    running = make_running(["other"])
    players = [play(running, place=place) for place in ("", "/models/2")]
    for player in players:
        player.receive("welcome")
    running.server.stop()
    for player in players:
        player.receive("drain")
        player.connection.close()
    running.wait()


def test_the_page_lets_one_choose(make_running, page):
    running = make_running(["other"])
    page.open(running.url)
    page.wait_for("!document.getElementById('models').hidden")
    running.until(lambda: running.workers[0].streams)
    page.evaluate(
        "(select => { select.value = 'models/2/'; select.dispatchEvent(new Event('change')); })"
        "(document.getElementById('models'))"
    )
    running.until(lambda: running.workers[1].streams)
    page.wait_for("document.getElementById('models').value === 'models/2/'")
    assert page.evaluate("location.pathname") == "/models/2/"
    assert page.evaluate("document.getElementById('model-name').textContent.length") == len("8x8")
    page.open("about:blank")


def test_one_model_leaves_no_choice(running: Running, page):
    page.open(running.url)
    page.wait_for("document.getElementById('model-name').textContent.startsWith('fake, 8')")
    assert page.evaluate("document.getElementById('models').hidden")
    page.open("about:blank")
