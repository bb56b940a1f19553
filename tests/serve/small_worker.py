# SPDX-License-Identifier: Apache-2.0
"""A worker process without torch, which answers every call with the numbers of its process and its folder."""

import os
import sys
from multiprocessing.connection import Connection

from aapt_fast.serve.pipe import pack, unpack

connection = Connection(int(sys.argv[1]))
begin, _ = unpack(connection.recv_bytes())
connection.send_bytes(pack({"ready": {"codecs": ["jpeg"]}, "sizes": []}))
try:
    while True:
        header, body = unpack(connection.recv_bytes())
        answer = {"answer": header["call"], "process": os.getpid(), "folder": begin["folder"]}
        connection.send_bytes(pack(answer, body[::-1]))
except EOFError:
    print("an ordinary end", flush=True)
