# SPDX-License-Identifier: Apache-2.0
"""The settings of `aapt-fast serve`, checked before any work, without torch."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aapt_fast.cli.absent import require_there
from aapt_fast.cli.choices import meant
from aapt_fast.errors import require

if TYPE_CHECKING:
    from aapt_fast.serve.settings import Limits, Settings

PACKAGES = ("fastapi", "uvicorn", "websockets", "prometheus_client")
LEAST = {"streams": 1, "parked": 0, "history": 0, "threads": 1}
ANY_ADDRESS = ("0.0.0.0", "::")


def check_serve(arguments: argparse.Namespace) -> None:
    """Raise ImportError for packages that are missing, ValueError and OSError, naming the option, for a mistake."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"it needs the packages {', '.join(missing)}: pip install 'aapt_fast[serve]'")
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        require(value >= least, f"--{name}", f"{least} or more", value)
    require(0 <= arguments.port < 2**16, "--port", "0..65535", arguments.port)
    require(0 <= arguments.drain <= 3600, "--drain", "0..3600 seconds", arguments.drain)
    if arguments.device is not None:
        known = re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device) is not None
        require(known, "--device", "cpu, cuda or cuda:N", arguments.device or "an empty text")
    for origin in arguments.origin:
        fits = re.fullmatch(r"https?://[^/\s]+", origin) is not None
        require(fits, "--origin", "an address without a path, such as https://example.org", origin or "an empty text")
    require(arguments.tls_key is None or arguments.tls_cert is not None, "--tls-key", "--tls-cert beside it", "none")
    for name in ("tls_cert", "tls_key"):
        path = getattr(arguments, name)
        if path is not None:
            require_there(f"--{name.replace('_', '-')}", "a file in PEM", path)
    if arguments.tls_cert is not None:
        _require_certificate(arguments.tls_cert, arguments.tls_key)
    settings_of(arguments)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the options say. Raises ValueError and OSError as `check_serve` does."""
    from aapt_fast.serve.security import require_token
    from aapt_fast.serve.settings import Settings

    token = _token(arguments)
    require_token(arguments.host, token)
    hosts = {*Settings.hosts, *(name.lower() for name in arguments.allow_host)}
    if arguments.host in ANY_ADDRESS:
        hosts |= own_names()
    else:
        hosts.add(arguments.host.lower())
    return Settings(
        model=models_of(arguments)[0],
        device=arguments.device,
        dtype=arguments.dtype,
        streams=arguments.streams,
        parked=arguments.parked,
        history=arguments.history,
        gpus=arguments.gpus,
        parallel=arguments.parallel,
        threads=arguments.threads,
        token=token,
        hosts=tuple(sorted(hosts)),
        origins=tuple(arguments.origin),
        drain_seconds=arguments.drain,
        limits=_limits(arguments.limit),
    )


def models_of(arguments: argparse.Namespace) -> list[str]:
    """The models of `--model`, in their order. Raises ValueError if one is given twice."""
    from aapt_fast.serve.settings import Settings

    models = arguments.model or [Settings.model]
    for number, model in enumerate(models):
        require(model not in models[:number], "--model", "each model once", f"{model} twice")
    return models


def _require_certificate(certificate: Path, key: Path | None) -> None:
    """Raise ValueError unless the files hold a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        got = f"{certificate} and {key or 'no other file'}: {error}"
        raise ValueError(f"--tls-cert: expected a certificate, with its key or --tls-key, in PEM, got {got}") from error


def own_names() -> set[str]:
    """Names and addresses under which other machines reach this one, as far as it knows them itself."""
    names = {socket.gethostname().lower(), socket.getfqdn().lower()}
    address = own_address()
    return names if address is None else names | {address}


def own_address() -> str | None:
    """The address of this machine towards others; None without a network. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address of no machine
        return str(probe.getsockname()[0])
    return None


def _token(arguments: argparse.Namespace) -> str | None:
    require(arguments.token is None or arguments.token_file is None, "--token", "either it or --token-file", "both")
    if arguments.token_file is None:
        return arguments.token
    require_there("--token-file", "a file with the token", arguments.token_file)
    return Path(arguments.token_file).read_text(encoding="utf-8").strip()


def _limits(given: list[str]) -> Limits:
    """The limits of `--limit NAME=NUMBER`, and the others as they are."""
    from aapt_fast.serve.settings import Limits

    kinds = {name: type(value) for name, value in Limits().to_dict().items()}
    values: dict[str, Any] = {}
    for text in given:
        name, _, number = text.partition("=")
        require(name in kinds, "--limit", f"one of {', '.join(kinds)}", f"{text}{meant(name, kinds)}")
        try:
            values[name] = kinds[name](number)
        except ValueError:
            kind = "an integer" if kinds[name] is int else "a number"
            raise ValueError(f"--limit: expected {name}= and {kind}, got {text}") from None
        require(0 < values[name] < float("inf"), f"--limit {name}", "more than 0", number)
    return Limits(**values)
