"""A bucket on this machine: the emulator of Cloud Storage, asked over HTTP by the same clients."""

import contextlib
import functools
import logging
import socket
import threading
from http import HTTPStatus

import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_ONE_AT_A_TIME = threading.RLock()


def _generation(request, storage):
    """Of the object that a request is about, "0" for none."""
    name = request.params.get("object_id") or request.query.get("name", [""])[0]
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def _with_conditions(handler):
    """What the emulator leaves out and the client of arrays asks for: the generation of what is
    read, requests that hold for one generation only, and one request after another."""

    @functools.wraps(handler)
    def handle(request, response, storage, *args, **kwargs):
        with _ONE_AT_A_TIME:
            found = _generation(request, storage)
            wanted, known = (
                request.query.get(f"ifGeneration{how}", [None])[0] for how in ("Match", "NotMatch")
            )
            if wanted not in (None, found):
                response.status = HTTPStatus.PRECONDITION_FAILED
            elif known == found != "0":
                response.status = HTTPStatus.NOT_MODIFIED
            else:
                if request.method == "GET":
                    response["x-goog-generation"] = found
                handler(request, response, storage, *args, **kwargs)

    return handle


@contextlib.contextmanager
def bucket():
    """gs://bucket, for as long as the block lasts."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for _, handlers in server.HANDLERS:
            for method, handler in handlers.items():
                if handler in (objects.insert, objects.get, objects.download, objects.delete):
                    patch.setitem(handlers, method, _with_conditions(handler))
        for name, value in {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks what kind of bucket
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }.items():
            patch.setenv(name, value)
        emulator = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
        emulator.start()
        try:
            yield "gs://bucket"
        finally:
            emulator.stop()


def upload(folder, name):
    from rdbcl_jax.remote import at

    for path in folder.rglob("*"):
        if path.is_file():
            at(f"{name}/{path.relative_to(folder)}").write_bytes(path.read_bytes())
    return name
