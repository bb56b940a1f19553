# SPDX-License-Identifier: Apache-2.0
"""The server as a Ray Serve application: replicas with a model each, behind Ray's proxy. Needs the extra `ray`.

    serve run aapt_fast.serve.ray_app:application model=mini-person shelf=/mnt/shared/streams max_replicas=8

A stream lives in the replica where its WebSocket landed. Ray counts open WebSockets, adds replicas when there are more
than `sessions` for each, and takes some away when there are fewer. Streams of a replica that is drained or dies go on
in another one from their copies in the folder `shelf`, when a client connects again and sends `watch` with the key.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from aapt_fast.errors import require
from aapt_fast.serve.app import create_app
from aapt_fast.serve.security import require_token
from aapt_fast.serve.settings import Settings


def application(arguments: dict[str, str]) -> serve.Application:
    """The application for `serve run` and Ray's configuration files.

    Args:
        arguments: texts. `model`, `device`, `dtype`, `token`, `hosts` (with commas between them), `shelf` and `kept_as`
            as in `Settings`; `sessions` per replica, which are its places for streams as well (default 4);
            `min_replicas` (1), `max_replicas` (1), and `gpus` of a replica (0).

    Raises ValueError for others, and for hosts beyond this machine without a token.
    """
    unknown = ", ".join(sorted(arguments.keys() - {*_TEXTS, *_NUMBERS}))
    require(not unknown, "arguments", f"some of {', '.join((*_TEXTS, *_NUMBERS))}", unknown)
    numbers = {}
    for name, default in _NUMBERS.items():
        given = arguments.get(name, default)
        require(given.isdecimal(), name, "a whole number", given)
        numbers[name] = int(given)
    texts: dict[str, Any] = {name: arguments[name] for name in _TEXTS if name in arguments}
    if "hosts" in texts:
        texts["hosts"] = tuple(texts["hosts"].split(","))
    sessions = numbers["sessions"]
    settings = Settings(**texts, streams=sessions, parked=2 * sessions)
    for host in settings.hosts:
        require_token(host, settings.token)
    return deployment(settings, numbers["min_replicas"], numbers["max_replicas"], numbers["gpus"]).bind()


_TEXTS = ("model", "device", "dtype", "token", "hosts", "shelf", "kept_as")
_NUMBERS = {"sessions": "4", "min_replicas": "1", "max_replicas": "1", "gpus": "0"}


def deployment(settings: Settings, min_replicas: int, max_replicas: int, gpus: int = 0) -> serve.Deployment:
    """Replicas of the server with these settings; one WebSocket for each of `settings.streams` is what they aim at."""
    scaling = AutoscalingConfig(
        min_replicas=min_replicas, max_replicas=max_replicas, target_ongoing_requests=settings.streams
    )

    def build() -> Any:
        return create_app(settings)

    class Replica:
        """One server and its worker process."""

        async def check_health(self) -> None:
            """Raise RuntimeError where the model cannot be loaded: Ray starts another replica then."""
            link = self.app.state.server.streams.link  # type: ignore[attr-defined]
            if link.failure is not None:
                raise RuntimeError(link.failure)

    replica = serve.ingress(build)(Replica)
    options = serve.deployment(
        name="streams",
        autoscaling_config=scaling,
        max_ongoing_requests=settings.limits.connections,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=5.0,
        ray_actor_options={"num_gpus": gpus},
    )
    return options(replica)
