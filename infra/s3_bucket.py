"""Objects below a prefix of an S3-compatible store. Credentials come from the environment only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.bucket import Bucket, Entry, checked
from infra.types import TransientError, UserError


class S3Bucket(Bucket):
    """A prefix of a bucket on any S3-compatible store with conditional puts."""

    def __init__(self, uri: str, endpoint: str | None = None, region: str | None = None) -> None:
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
            retries={"max_attempts": 8, "mode": "adaptive"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
        )
        return boto3.client("s3", endpoint_url=self.endpoint, region_name=self.region, config=config)

    def _call(self, verb: str, name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, verb)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("NoSuchKey", "404", "PreconditionFailed", "412", "ConditionalRequestConflict"):
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
        from boto3.exceptions import S3UploadFailedError

        try:
            self._client.upload_file(str(source), self.bucket, self._key(name))
        except S3UploadFailedError as error:
            raise TransientError(f"{self.uri}/{name} could not be uploaded: run the same command again") from error

    def get(self, name: str) -> bytes | None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        try:
            return self._call("get_object", name, Key=self._key(name))["Body"].read()
        except ClientError:
            return None

    def delete(self, name: str) -> None:
        """See Bucket."""
        self._call("delete_object", name, Key=self._key(name))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See Bucket; a thousand names a request."""
        start = f"{self._key(prefix)}/" if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", prefix, Prefix=start, **token)
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
                body = self._call("get_object", name, Key=self._key(name))["Body"]
            except ClientError as error:
                raise FileNotFoundError(f"{self.uri}/{name}") from error
            with path.open("wb") as file:
                shutil.copyfileobj(body, file, 1 << 20)
            yield path

    def date(self) -> str:
        """What time the store says it is, as an HTTP date."""
        reply = self._call("list_objects_v2", "", Prefix=self.prefix, MaxKeys=1)
        return reply["ResponseMetadata"]["HTTPHeaders"]["date"]

    def storage_options(self) -> dict[str, str] | None:
        """See Bucket; credentials reach Lance through the environment as well."""
        options = {"region": self.region}
        if self.endpoint:
            options |= {"endpoint": self.endpoint, "aws_endpoint": self.endpoint}
            if self.endpoint.startswith("http://"):
                options["allow_http"] = "true"
        return options
