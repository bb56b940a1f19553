# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/, as far as they can be checked without a container engine or a cluster."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from aapt_fast.cli.options import make_parser
from aapt_fast.serve.security import GUARDED
from aapt_fast.serve.settings import Settings

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
USER = 10001
LAST_TEN_SECONDS = 10
"""The server has ended that many seconds after its drain, at the latest (docs/how-to/serve.md)."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    (deployment,) = (each for each in manifests() if each["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def hadolint(text: str) -> tuple[int, str]:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, "-"], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE) == (0, "")


def test_hadolint_would_find_something() -> None:
    status, found = hadolint(DOCKERFILE.replace("python:3.11-slim-bookworm", "python:latest"))
    assert status == 1 and "DL3007" in found


def last_stage() -> str:
    return DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_the_image_that_runs_has_no_compiler_and_no_root() -> None:
    stage = last_stage()
    assert f"USER {USER}:{USER}" in stage and "apt-get" not in stage and "g++" not in stage
    assert stage.index("USER ") < stage.index("ENTRYPOINT")
    copied = re.findall(r"^COPY (.*)$", stage, re.MULTILINE)
    assert copied == ["--from=build /opt/aapt_fast /opt/aapt_fast"]


def test_files_that_it_copies_exist_and_are_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert "constraints.txt" not in ignored and (REPOSITORY / "constraints.txt").is_file()
    assert (REPOSITORY / ".ci/provide-nvcc").is_file() and ".git" not in ignored  # the build names its commit


@pytest.fixture
def answers() -> Iterator[tuple[str, list[HTTPStatus]]]:
    """The address of a server that answers with the status in the list."""
    status = [HTTPStatus.OK]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", status
        server.shutdown()


def test_the_health_check_fails_where_the_server_does(answers: tuple[str, list[HTTPStatus]]) -> None:
    (words,) = re.findall(r"^HEALTHCHECK .*\\\n *CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    _, dash, program = json.loads(words)
    assert dash == "-c" and "127.0.0.1:8000/health" in program
    address, status = answers
    for status[0], expected in ((HTTPStatus.OK, 0), (HTTPStatus.SERVICE_UNAVAILABLE, 1)):
        command = [sys.executable, "-c", program.replace("127.0.0.1:8000", address)]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == expected


def test_each_command_is_understood(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    (default,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    (container,) = pod["containers"]
    services = compose["services"].values()
    for command in (json.loads(default), container["args"], *(each["command"] for each in services)):
        arguments = make_parser().parse_args(command)
        assert (arguments.command, arguments.host, arguments.port) == ("serve", "0.0.0.0", 8000)
        assert arguments.token_file is not None


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_containers_wait_for_the_drain(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    for service in compose["services"].values():
        drain = make_parser().parse_args(service["command"]).drain
        assert seconds(service["stop_grace_period"]) >= drain + LAST_TEN_SECONDS
    (container,) = pod["containers"]
    (sleep, hook) = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = make_parser().parse_args(container["args"]).drain
    assert sleep == "sleep" and pod["terminationGracePeriodSeconds"] > int(hook) + drain + LAST_TEN_SECONDS


def test_services_are_read_only_without_rights(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"]
        assert {volume.split(":")[1] for volume in service["volumes"]} == {"/models", "/cache"}
        assert (
            DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
        ).resolve() == DEPLOY / "Dockerfile"
        known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
        assert set(service["build"].get("args", {})) <= known
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_pod_is_read_only_without_rights(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == USER
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert {"/models", "/cache", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_probes_ask_for_what_the_server_answers_without_a_token(pod: dict[str, Any]) -> None:
    """They name it `localhost`: a request to the address of a pod would be refused."""
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/health", "/health", "/ready"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in probes:
        assert not GUARDED.match(probe["path"]) and ports[probe["port"]] == 8000
        (host,) = (header["value"] for header in probe["httpHeaders"] if header["name"] == "Host")
        assert host in Settings.hosts


def test_the_service_finds_the_pod(pod: dict[str, Any]) -> None:
    (service,) = (each for each in manifests() if each["kind"] == "Service")
    (deployment,) = (each for each in manifests() if each["kind"] == "Deployment")
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    claims = {each["metadata"]["name"] for each in manifests() if each["kind"] == "PersistentVolumeClaim"}
    asked = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
    assert asked == claims


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kubernetes.yaml"])
def test_it_says_that_it_was_never_run(name: str) -> None:
    assert "never run" in (DEPLOY / name).read_text()[:900]
