# SPDX-License-Identifier: Apache-2.0
"""Server of streams for browsers and programs: `aapt-fast serve`, or `create_app` in a program of your own.

    browser, client  <- WebSocket ->  server process: event loop, no torch    app.py connection.py streams.py
                                           |  bytes over a socket pair        link.py pipe.py
                                      worker process: torch, engine, encoders  worker.py host.py encoders.py

protocol.py has the messages, docs/reference/protocol.md describes them. Several servers share streams on a shelf.py;
ray_app.py runs them as replicas of Ray Serve.
"""
