# SPDX-License-Identifier: Apache-2.0
"""The options of `aapt-fast serve`: settings, and mistakes that are found before any work."""

from __future__ import annotations

import socket

import pytest

from aapt_fast.cli import main, serve_settings
from aapt_fast.cli.options import make_parser
from aapt_fast.cli.serve_settings import models_of, settings_of
from aapt_fast.serve.settings import Settings

TOKEN = "sixteen-letters-or-more"


def settings(*options: str) -> Settings:
    return settings_of(make_parser().parse_args(["serve", *options]))


def test_without_options_they_are_the_defaults():
    assert settings() == Settings(hosts=tuple(sorted(Settings.hosts)))
    assert models_of(make_parser().parse_args(["serve"])) == ["mini-person"]


def test_options_become_settings(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    found = settings("--host", "0.0.0.0", "--token-file", str(file), "--allow-host", "Play.example", "--streams", "7")
    assert found.token == TOKEN and found.streams == 7
    assert {"play.example", "localhost", socket.gethostname().lower()} <= set(found.hosts)
    found = settings("--limit", "uploads=3", "--limit", "slow_seconds=2.5", "--origin", "https://a.example")
    assert (found.limits.uploads, found.limits.slow_seconds, found.origins) == (3, 2.5, ("https://a.example",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--token: expected a token, as others can reach 0.0.0.0, got none"),
        (
            ["--token", "short"],
            "--token: expected 16 or more letters, digits and signs without spaces, got 5 characters",
        ),
        (["--token", TOKEN, "--token-file", "x"], "--token: expected either it or --token-file, got both"),
        (["--token-file", "nothing-there"], "--token-file: expected a file with the token, got nothing-there"),
        (["--model", "mini-persom"], "--model: expected mini-anyone | mini-person, or a file"),
        (
            ["--model", "mini-person", "--model", "mini-persom"],
            "--model: expected mini-anyone | mini-person, or a file",
        ),
        (
            ["--model", "mini-person", "--model", "mini-person"],
            "--model: expected each model once, got mini-person twice",
        ),
        (["--port", "70000"], "--port: expected 0..65535, got 70000"),
        (["--streams", "0"], "--streams: expected 1 or more, got 0"),
        (["--parked", "-1"], "--parked: expected 0 or more, got -1"),
        (["--drain", "nan"], "--drain: expected 0..3600 seconds, got nan"),
        (["--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got tpu"),
        (["--gpus", "3"], "--gpus: expected a number that divides 4 heads of mini-person, got 3"),
        (["--gpus", "0"], "--gpus: expected at least 1, got 0"),
        (
            ["--gpus", "2", "--device", "cuda:1"],
            "--device: expected cpu or cuda with several --gpus, got cuda:1",
        ),
        (["--limit", "streem=1"], "--limit: expected one of connections"),
        (["--limit", "uploads=x"], "--limit: expected uploads= and an integer, got uploads=x"),
        (["--limit", "uploads=0"], "--limit uploads: expected more than 0, got 0"),
        (["--origin", "a.example/x"], "--origin: expected an address without a path"),
        (["--tls-key", "key.pem"], "--tls-key: expected --tls-cert beside it, got none"),
        (["--tls-cert", "no.pem"], "--tls-cert: expected a file in PEM, got no.pem, which does not exist"),
    ],
)
def test_mistakes_are_one_line_and_status_2(options, message, capsys):
    assert main(["serve", *options]) == 2
    assert capsys.readouterr().err.startswith(f"aapt-fast serve: {message}")


def test_a_certificate_without_its_key_is_refused(tmp_path, capsys):
    file = tmp_path / "cert.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert main(["serve", "--tls-cert", str(file)]) == 2
    expected = "aapt-fast serve: --tls-cert: expected a certificate, with its key or --tls-key, in PEM, got "
    assert capsys.readouterr().err.startswith(expected)


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    expected = (
        f"aapt-fast serve: --port: expected a free port of this machine (0 takes any), got {port} at 127.0.0.1: Address"
    )
    assert capsys.readouterr().err.startswith(expected)
    assert main(["serve", "--host", "no.such.name.invalid", "--token", TOKEN]) == 2
    assert capsys.readouterr().err.startswith("aapt-fast serve: --host: expected a name or address of this machine")


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, capsys):
    monkeypatch.setattr(serve_settings, "PACKAGES", ("fastapi", "no_such_package"))
    assert main(["serve"]) == 2
    expected = "aapt-fast serve: it needs the packages no_such_package: pip install 'aapt_fast[serve]'\n"
    assert capsys.readouterr().err == expected
