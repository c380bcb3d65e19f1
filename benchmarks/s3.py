"""A real S3 server that counts: requests and payload bytes of each bucket, by its own metrics.

    with CountingS3(folder) as server:
        before = server.traffic("bench")
        ...
        moved = server.traffic("bench") - before

Counting at the server costs the measured tool nothing and is the same for all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import urllib.request
from dataclasses import dataclass

from dvk.testing.s3server import S3Server, free_ports

_LINE = re.compile(r'SeaweedFS_s3_(\w+)\{([^}]*)bucket="([^"]*)"[^}]*\} (\S+)')


@dataclass(frozen=True)
class Traffic:
    """What a bucket saw."""

    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    objects: int = 0  #: uploads that were completed

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.requests - other.requests,
            self.received_bytes - other.received_bytes,
            self.sent_bytes - other.sent_bytes,
            self.objects - other.objects,
        )


class CountingS3(S3Server):
    """The test server with metrics switched on and room for full-scale workloads; its data goes with it."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory)
        super().__init__(directory)
        (self._metrics,) = free_ports(1)
        # The server takes the last of two equal options, so a small program in front of it adds ours.
        program = os.path.join(directory, "weed")
        options = f"-metricsPort={self._metrics} -metricsIp=127.0.0.1 -volume.max=400 -master.volumeSizeLimitMB=1024"
        with open(program, "w") as f:
            f.write(f'#!/bin/sh\nexec {shlex.quote(self._weed)} "$@" {options}\n')
        os.chmod(program, 0o755)
        self._weed = program

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def traffic(self, bucket: str) -> Traffic:
        """What `bucket` saw since the server started."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        sums = {"request_total": 0, "bucket_traffic_received_bytes_total": 0, "bucket_traffic_sent_bytes_total": 0}
        sums["uploaded_objects"] = 0
        for name, _, said, value in _LINE.findall(text):
            if said == bucket and name in sums:
                sums[name] += int(float(value))
        return Traffic(*sums.values())
