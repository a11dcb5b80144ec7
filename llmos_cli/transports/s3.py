"""S3 and what speaks like it: `s3://bucket/folder`, credentials and endpoint as every S3 tool finds them.

    AWS_ENDPOINT_URL_S3=https://minio.example AWS_PROFILE=models llmos push

boto3 rather than fsspec's s3fs: it gives conditional puts, checksums that the service compares before it keeps a file, and
the parts of an upload that was cut off. An object appears whole or not at all, so nothing needs to be renamed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from llmos_cli.core import urls
from llmos_cli.core.remote.store import CHUNK, Content, Heard
from llmos_cli.errors import Corrupt, LlmosError, NotFound, UsageError

SCHEMES = ("s3",)
_PART = 16 << 20
_PARTS = 9000
"""Of 10,000 that there may be."""
_MISSING = {"404", "NoSuchKey", "NotFound"}
_PROBE = "uploads/conditional"
_UNHEARD_OF = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def open_store(url: str, root: Path, identity: str) -> S3Store:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UsageError(f"{url} needs the package boto3", hint="pip install 'llmos-cli[remotes]'") from None
    parts = urls.split(url)
    if not parts.netloc:
        raise UsageError(f"{url} names no bucket", hint="s3://bucket/folder")
    with _told(url):
        # A session of its own: boto3's own one would remember the credentials it first found.
        try:
            client = boto3.session.Session().client(
                "s3", config=Config(retries={"mode": "standard", "total_max_attempts": 4})
            )
        except ValueError as error:  # of what the environment or a profile says
            hint = "an endpoint is a whole URL: AWS_ENDPOINT_URL_S3=https://minio.example:9000"
            raise UsageError(f"{url} cannot be asked: {error}", hint=hint) from error
    return S3Store(url, client, parts.netloc, parts.path.strip("/"))


class S3Store:
    def __init__(self, url: str, client: Any, bucket: str, folder: str) -> None:
        self._url = url
        self._client = client
        self._bucket = bucket
        self._folder = folder

    def read(self, name: str, limit: int) -> bytes | None:
        with _told(self._url):
            try:
                body = self._client.get_object(**self._at(name))["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            with contextlib.closing(body):
                data: bytes = body.read(limit + 1)
        if len(data) > limit:
            raise Corrupt(f"{name} in {self._url} is larger than such a file can be", hint="ask who can write there")
        return data

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        with _told(self._url):
            try:
                # Of an empty object S3 has no first byte to begin at.
                part = {"Range": f"bytes={start}-"} if start else {}
                body = self._client.get_object(**self._at(name), **part)["Body"]
            except self._client.exceptions.NoSuchKey:
                raise NotFound(f"{name} is not in {self._url} any more", hint="try again") from None
            with contextlib.closing(body):
                yield from body.iter_chunks(CHUNK)

    def size(self, name: str) -> int | None:
        with _told(self._url):
            try:
                return int(self._client.head_object(**self._at(name))["ContentLength"])
            except self._client.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def names(self, folder: str) -> set[str]:
        prefix = "/".join(filter(None, (self._folder, folder))) + "/" if self._folder or folder else ""
        with _told(self._url):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return {each["Key"][len(prefix) :] for page in pages for each in page.get("Contents", ())}

    def put(self, name: str, content: Content, heard: Heard) -> None:
        with _told(self._url):
            if content.size > _PART:
                self._put_in_parts(name, content, heard)
            else:
                self._put_at_once(name, b"".join(content.chunks()))
                heard(content.size)

    @cached_property
    def no_exclusive_create(self) -> str:
        """Asked of the service itself: of what speaks like S3 some takes no notice of a condition. Of two such puts of one name, the
        second tells, and of any later ones the first."""
        with _told(self._url):
            if self._created(_PROBE, b"") is False or self._created(_PROBE, b"") is False:
                return ""
        return "this service heeds no `If-None-Match`, and cannot tell two who push at once apart"

    def create(self, name: str, data: bytes) -> bool:
        with _told(self._url):
            if not self.no_exclusive_create:
                return bool(self._created(name, data))
            if self.size(name) is not None:
                return False
            self._put_at_once(name, data)
            return True

    def _created(self, name: str, data: bytes) -> bool | None:
        """None: the service will not have such a put."""
        try:
            self._put_at_once(name, data, IfNoneMatch="*")
        except self._client.exceptions.ClientError as error:
            if _code(error) in _UNHEARD_OF:
                return None
            if _code(error) not in _TAKEN:
                raise
            # The answer to a put that was done may have been lost: sent again, it finds itself in the way.
            again = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            return bool(again) and name != _PROBE and self.read(name, len(data) + 1) == data
        return True

    def close(self) -> None:
        self._client.close()

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": "/".join(filter(None, (self._folder, name)))}

    def _put_at_once(self, name: str, data: bytes, **condition: str) -> None:
        """The service refuses what does not have the checksum that was sent with it, and says which one it has kept."""
        answer = self._client.put_object(**self._at(name), Body=data, ChecksumSHA256=_checksum(data), **condition)
        self._compare(name, answer, data)

    def _put_in_parts(self, name: str, content: Content, heard: Heard) -> None:
        """Parts that an earlier upload of the same bytes brought, whoever's it was, are not sent again."""
        upload = self._unfinished(name) or self._begun(name)
        there = self._parts(name, upload)
        done = []
        for number, data in enumerate(_in_parts(content), 1):
            tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
            checksum = _checksum(data)
            if there.get(number) != (tag, len(data)):
                answer = self._client.upload_part(
                    **self._at(name), UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum
                )
                self._compare(name, answer, data)
                tag = answer["ETag"]
            done.append({"PartNumber": number, "ETag": tag, "ChecksumSHA256": checksum})
            heard(len(data))
        self._complete(name, upload, done, content.size)

    def _unfinished(self, name: str) -> str | None:
        key = self._at(name)["Key"]
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
        return next((str(each["UploadId"]) for each in answer.get("Uploads", ()) if each["Key"] == key), None)

    def _begun(self, name: str) -> str:
        return str(self._client.create_multipart_upload(**self._at(name), ChecksumAlgorithm="SHA256")["UploadId"])

    def _parts(self, name: str, upload: str) -> dict[int, tuple[str, int]]:
        pages = self._client.get_paginator("list_parts").paginate(**self._at(name), UploadId=upload)
        return {
            int(each["PartNumber"]): (str(each["ETag"]), int(each["Size"]))
            for page in pages
            for each in page.get("Parts", ())
        }

    def _complete(self, name: str, upload: str, parts: list[dict[str, Any]], size: int) -> None:
        try:
            self._client.complete_multipart_upload(
                **self._at(name), UploadId=upload, MultipartUpload={"Parts": parts}, ChecksumType="COMPOSITE"
            )
        except self._client.exceptions.ClientError as error:
            # Somebody else, with the same bytes, may have ended this very upload a moment ago.
            if _code(error) != "NoSuchUpload" or self.size(name) != size:
                raise

    def _compare(self, name: str, answer: dict[str, Any], data: bytes) -> None:
        if answer.get("ChecksumSHA256", _checksum(data)) != _checksum(data):
            raise LlmosError(f"{name} arrived in {self._url} damaged", hint="try again")


def _in_parts(content: Content) -> Iterator[bytes]:
    size = max(_PART, -(-content.size // _PARTS))
    waiting: list[bytes] = []
    for chunk in content.chunks():
        waiting.append(chunk)
        if sum(map(len, waiting)) >= size:
            data = b"".join(waiting)
            yield data[:size]
            waiting = [data[size:]]
    if rest := b"".join(waiting):
        yield rest


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What the service or the way to it said, in one sentence."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _sentence(url, _code(error), str(error)) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        raise UsageError(
            f"no credentials for {url}", hint="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except exceptions.NoRegionError as error:
        raise UsageError(f"no region for {url}", hint="AWS_DEFAULT_REGION=us-east-1") from error
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        told = " ".join(str(error).split())
        raise LlmosError(f"cannot reach {url}: {told}", hint="try again: nothing need be sent twice") from error
    except RecursionError as error:  # boto3 goes after each, without end
        raise LlmosError(
            f"cannot reach {url}: the service only redirects elsewhere", hint="are its endpoint and its region right?"
        ) from error


def _sentence(url: str, code: str, text: str) -> LlmosError:
    if code == "NoSuchBucket":
        return NotFound(f"there is no bucket for {url}", hint="make it first: llmos makes none")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return LlmosError(
            f"access to {url} is denied ({code})", hint="do the credentials allow reading, writing and listing?"
        )
    return LlmosError(f"{url} refused: {text}", hint="try again: nothing need be sent twice")
