"""Objects below a prefix of an S3-compatible store. Credentials come from the environment only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from infra import requests
from infra.bucket import Bucket, Entry, checked
from infra.types import TransientError, UserError, without_secrets
from infra.world import wait

NUM_RETRIES = 8
"""How often a request to a store is sent again, by boto3 and by Lance; both wait longer each time, with jitter."""
RETRY_TIMEOUT_S = 180
T = TypeVar("T")


class S3Bucket(Bucket):
    """A prefix of a bucket on any S3-compatible store with conditional puts."""

    def __init__(
        self, uri: str, endpoint: str | None = None, region: str | None = None, num_retries: int = NUM_RETRIES
    ) -> None:
        for address in (uri, endpoint or ""):
            if without_secrets(address) != address:
                raise UserError(f"{without_secrets(address)} holds a password or a token: take it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")  # fmt: skip  # noqa: E501
        self.num_retries = num_retries
        self.bucket, _, self.prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket:
            raise UserError(f"{uri!r} names no bucket: write s3://bucket or s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.endpoint = endpoint
        self.region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the client: each process makes its own."""
        return {k: v for k, v in self.__dict__.items() if k != "_client"}

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"total_max_attempts": 1 + self.num_retries, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
        )
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name=self.region, config=config)
        requests.watch(client)
        return client

    def _call(self, verb: str, name: str, **arguments: Any) -> Any:
        """One request; one whose reply was cut off is sent again, since boto3 does not: a put may be our own then."""
        from urllib3.exceptions import HTTPError

        for attempt in range(1 + self.num_retries):
            try:
                return self._request(verb, name, **arguments)
            except HTTPError:
                wait(attempt)
        raise self._cut_off(name)

    def _cut_off(self, name: str) -> TransientError:
        return TransientError(f"the reply for {self.uri}/{name} was cut off {1 + self.num_retries} times: run the same command again")  # fmt: skip  # noqa: E501

    def _request(self, verb: str, name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, verb)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("NoSuchKey", "404", "PreconditionFailed", "412", "ConditionalRequestConflict", "InvalidRange"):
                raise
            if code in ("NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
                raise UserError(f"the store refused {self.uri}/{name} ({code}): check the bucket's name, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment") from None  # fmt: skip  # noqa: E501
            raise TransientError(
                f"the store failed at {self.uri}/{name} ({code}): run the same command again"
            ) from error
        except BotoCoreError as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise UserError(f"no credentials for {self.uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment") from None  # fmt: skip  # noqa: E501
            raise TransientError(f"the store at {self.endpoint or 'AWS'} did not answer for {name} ({type(error).__name__}): run the same command again") from error  # fmt: skip  # noqa: E501

    def _read(self, name: str, take: Callable[[Any], T], **arguments: Any) -> T:
        """What `take` makes of an object's body, from its beginning again where the body was cut: boto3 retries
        requests, and not bodies."""
        from botocore.exceptions import BotoCoreError

        for attempt in range(1 + self.num_retries):
            body = self._call("get_object", name, Key=self._key(name), **arguments)["Body"]
            try:
                return take(body)
            except BotoCoreError:
                wait(attempt)
        raise self._cut_off(name)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{checked(name)}" if self.prefix else checked(name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See Bucket; exactly one winner by the store's conditional put."""
        from botocore.exceptions import ClientError

        for _ in range(20):
            try:
                self._call("put_object", name, Key=self._key(name), Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                found = self.get(name)
                if found is not None:
                    return found == data
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    raise
        raise TransientError(f"{self.uri}/{name} kept conflicting with another writer: run the same command again")

    def put(self, name: str, data: bytes) -> None:
        """See Bucket."""
        self._call("put_object", name, Key=self._key(name), Body=data)

    def upload(self, name: str, source: Path) -> None:
        """See Bucket; in parts where the file is large."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError

        try:
            self._client.upload_file(str(source), self.bucket, self._key(name))
        except (Boto3Error, BotoCoreError) as error:
            raise TransientError(f"{self.uri}/{name} could not be uploaded: run the same command again") from error

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        try:
            return self._read(name, lambda body: body.read())
        except ClientError:
            return None

    def delete(self, name: str) -> None:
        """See Bucket."""
        self._call("delete_object", name, Key=self._key(name))

    def entries(self, prefix: str = "", after: str = "") -> Iterator[Entry]:
        """See Bucket; a page a request, and no more than a page in memory."""
        start = f"{self._key(prefix)}/" if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        token = {"StartAfter": self._key(after)} if after else {}
        while True:
            page = self._call("list_objects_v2", prefix, Prefix=start, MaxKeys=self.page_names, **token)
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"][cut:], item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def size(self, name: str) -> int | None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        try:
            return self._call("head_object", name, Key=self._key(name))["ContentLength"]
        except ClientError:
            return None

    @contextmanager
    def local(self, name: str) -> Generator[Path]:
        """See Bucket; a temporary copy."""
        from botocore.exceptions import ClientError

        with tempfile.TemporaryDirectory(prefix="plait-") as folder:
            path = Path(folder, Path(name).name)
            try:
                self._read(name, lambda body: _copy(body, path))
            except ClientError as error:
                raise FileNotFoundError(f"{self.uri}/{name}") from error
            yield path

    def part(self, name: str, offset: int, size_bytes: int, target: Path) -> None:
        """See Bucket; one ranged request."""
        from botocore.exceptions import ClientError

        target.write_bytes(b"")
        if size_bytes <= 0:  # a range cannot say "nothing"
            return
        try:
            self._read(name, lambda body: _copy(body, target), Range=f"bytes={offset}-{offset + size_bytes - 1}")
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidRange":  # it begins behind the object's end
                raise FileNotFoundError(f"{self.uri}/{name}") from error

    def below(self, name: str) -> S3Bucket:
        """See Bucket."""
        return S3Bucket(self.url(name), self.endpoint, self.region, self.num_retries)

    def date(self) -> str:
        """What time the store says it is, as an HTTP date."""
        reply = self._call("list_objects_v2", "", Prefix=self.prefix, MaxKeys=1)
        return reply["ResponseMetadata"]["HTTPHeaders"]["date"]

    def storage_options(self) -> dict[str, str] | None:
        """See Bucket; credentials reach Lance through the environment as well."""
        options = {
            "region": self.region,
            "client_max_retries": str(self.num_retries),
            "client_retry_timeout": str(RETRY_TIMEOUT_S),
            "download_retry_count": str(self.num_retries),
        }
        if self.endpoint:
            options |= {"endpoint": self.endpoint, "aws_endpoint": self.endpoint}
            if self.endpoint.startswith("http://"):
                options["allow_http"] = "true"
        return options


def _copy(body: Any, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(body, file, 1 << 20)
