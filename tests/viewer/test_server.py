"""The viewer's web server, asked over real connections."""

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurokube.errors import DataError, UsageError
from neurokube.viewer import Layer, Server, View, serve
from neurokube.viewer.server import byte_range
from neurokube.volumes import VolumeSpec, create

pytestmark = pytest.mark.skipif(find_spec("neuroglancer") is None, reason="needs the extra 'view'")

SHARD = "0/c/0/0/0"


def make_volume(url: str) -> str:
    spec = VolumeSpec((16, 32, 32), "uint8", (40.0, 8.0, 8.0))
    volume = create(url, spec, shard=(16, 16, 16), chunk=(8, 8, 8))
    values = np.random.default_rng(0).integers(1, 255, spec.shape, dtype=np.uint8)
    values[:, :, 16:] = 0  # shards that stay absent
    volume.write(spec.box, values)
    return url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "secret").write_text("secret")
    make_volume(str(folder / "image"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    layers = [
        Layer("raw image", str(folder / "image"), "image"),
        Layer("remote", make_volume("memory://viewer-test"), "image"),
    ]
    with serve(layers) as server:
        yield server


@pytest.fixture
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=20)
    yield connection
    connection.close()


def ask(
    connection: http.client.HTTPConnection, path: str, *, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize("layer", ["raw%20image", "remote"])
def test_a_volume_is_served_from_a_folder_and_from_any_other_store(
    connection: http.client.HTTPConnection, folder: Path, layer: str
) -> None:
    for key in ("zarr.json", "0/zarr.json", SHARD):
        response, body = ask(connection, f"/data/{layer}/{key}")
        assert response.status == 200
        if key != "zarr.json":  # it holds the volume's name
            assert body == (folder / "image" / key).read_bytes()


@pytest.mark.parametrize("layer", ["raw%20image", "remote"])
@pytest.mark.parametrize("asked", ["0-0", "10-19", "100-", "-1", "-132", "-99999999", "7-99999999"])
def test_byte_ranges_are_those_of_the_file(
    connection: http.client.HTTPConnection, folder: Path, layer: str, asked: str
) -> None:
    whole = (folder / "image" / SHARD).read_bytes()
    first, last = (int(n) if n else None for n in asked.split("-"))
    if first is None:
        assert last is not None
        first, last = max(0, len(whole) - last), None
    stop = len(whole) if last is None else min(last + 1, len(whole))
    response, body = ask(connection, f"/data/{layer}/{SHARD}", Range=f"bytes={asked}")
    assert response.status == 206
    assert body == whole[first:stop]
    assert response.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(whole)}"


def test_a_range_beyond_the_end_is_refused_with_the_size(connection: http.client.HTTPConnection, folder: Path) -> None:
    size = (folder / "image" / SHARD).stat().st_size
    response, _ = ask(connection, f"/data/remote/{SHARD}", Range=f"bytes={size}-")
    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{size}"


@given(st.binary(max_size=20), st.integers(0, 25), st.integers(0, 25))
def test_a_range_never_reaches_outside_the_object(data: bytes, a: int, b: int) -> None:
    first, last = sorted((a, b))
    expected = {f"bytes={first}-{last}": data[first : last + 1], f"bytes={a}-": data[a:]}
    expected[f"bytes=-{b}"] = data[max(0, len(data) - b) :]
    for header, part in expected.items():
        asked = byte_range(header, len(data))
        assert asked is not None
        assert bytes(data[i] for i in asked) == part


@pytest.mark.parametrize("header", ["", "bytes=-", "bytes=3-2", "bytes=0-1,4-5", "lines=0-1", "bytes=a-b"])
def test_a_range_that_cannot_be_understood_stands_for_the_whole(header: str) -> None:
    assert byte_range(header, 10) is None


@pytest.mark.parametrize("layer", ["raw%20image", "remote"])
def test_head_tells_the_size_without_a_body(connection: http.client.HTTPConnection, folder: Path, layer: str) -> None:
    response, body = ask(connection, f"/data/{layer}/{SHARD}", method="HEAD")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) == (folder / "image" / SHARD).stat().st_size


def test_pages_of_other_origins_may_read_ranges(connection: http.client.HTTPConnection) -> None:
    response, _ = ask(connection, f"/data/remote/{SHARD}", Range="bytes=0-3")
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Range" in response.headers["Access-Control-Expose-Headers"]
    response, _ = ask(connection, f"/data/remote/{SHARD}", method="OPTIONS")
    assert response.status == 204
    assert response.headers["Access-Control-Allow-Headers"] == "Range"
    assert "HEAD" in response.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    "path",
    [
        "/data/remote/0/c/0/0/1",
        "/data/raw%20image/0/c/0/0/1",
        "/data/raw%20image/0",
        "/data/raw%20image/0/",
        "/data/raw%20image",
        "/data/nothing/zarr.json",
        "/nothing",
        "/v/1/nothing.js",
    ],
)
def test_what_is_not_there_is_not_found(connection: http.client.HTTPConnection, path: str) -> None:
    assert ask(connection, path)[0].status == 404


@pytest.mark.parametrize("root", ["/data/raw%20image", "/v/1"])
@pytest.mark.parametrize("climb", ["../secret", "0/../../secret", "%2e%2e/secret", "..%2fsecret", "%2e%2e%2fsecret"])
def test_a_path_cannot_climb_out(connection: http.client.HTTPConnection, root: str, climb: str) -> None:
    assert ask(connection, f"{root}/{climb}")[0].status == 404


@pytest.mark.parametrize("root", ["/data/raw%20image", "/v/1"])
def test_a_path_cannot_start_at_the_root(connection: http.client.HTTPConnection, folder: Path, root: str) -> None:
    secret = str(folder / "secret")
    assert ask(connection, f"{root}/{secret}")[0].status == 404
    assert ask(connection, f"{root}/{secret.replace('/', '%2f')}")[0].status == 404


def test_many_answers_come_over_one_connection(connection: http.client.HTTPConnection) -> None:
    ask(connection, "/v/1/")
    first = connection.sock
    for path in ("/data/remote/nothing", "/data/remote/zarr.json", f"/data/remote/{SHARD}"):
        ask(connection, path)
    ask(connection, f"/data/remote/{SHARD}", method="HEAD")
    assert connection.sock is first


def test_the_short_address_leads_to_the_viewer_even_over_a_forwarded_port(
    connection: http.client.HTTPConnection, server: Server
) -> None:
    assert ask(connection, "/")[0].headers["Location"] == server.url
    forwarded = ask(connection, "/", Host="localhost:9999")[0].headers["Location"]
    state = json.loads(unquote(forwarded.removeprefix("http://localhost:9999/v/1/#!")))
    assert state["layers"][0]["source"] == "http://localhost:9999/data/raw%20image/|zarr3:"


def test_views_have_short_addresses_until_others_are_shown(folder: Path) -> None:
    with serve([Layer("image", str(folder / "image"), "image")]) as server:
        assert server.show([View((0.0, 0.0, 8.0 * n)) for n in range(3)])[2] == f"{server.address}/3"
        assert server.show([View((40.0, 0.0, 80.0))]) == [f"{server.address}/1"]
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=20)
        location = ask(connection, "/1")[0].headers["Location"]
        assert json.loads(unquote(location.split("#!")[1]))["position"] == [10, 0, 1]
        assert ask(connection, "/")[0].headers["Location"] == server.url
        # the last is a digit of Arabic script
        for path in ("/2", "/01", "/-1", "/1/", "/%D9%A1"):
            assert ask(connection, path)[0].status == 404, path
        connection.close()


def test_the_client_comes_with_the_types_that_browsers_demand(connection: http.client.HTTPConnection) -> None:
    response, body = ask(connection, "/v/1/")
    assert response.headers["Content-Type"] == "text/html"
    script = next(n for n in body.decode().split('"') if n.startswith("main.") and n.endswith(".js"))
    assert "javascript" in ask(connection, f"/v/1/{script}")[0].headers["Content-Type"]


def test_close_ends_waiting_connections_and_frees_the_port(folder: Path) -> None:
    layers = [Layer("image", str(folder / "image"), "image")]
    server = serve(layers)
    port = int(server.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as events:
        events.sendall(b"GET /events/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = events.recv(1 << 16)
        assert b"text/event-stream" in received
        server.close()
        while received:
            received = events.recv(1 << 16)
    with serve(layers, port=port) as again:
        assert again.address == server.address


def test_a_port_in_use_is_refused_with_the_remedy(folder: Path, server: Server) -> None:
    port = int(server.address.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use: choose another with --port"):
        serve([Layer("image", str(folder / "image"), "image")], port=port)


def test_a_port_that_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"port 99999 .* choose another with --port"):
        serve([Layer("image", str(folder / "image"), "image")], port=99999)


def test_an_absent_volume_is_refused_and_the_port_is_given_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="no volume there"):
        serve([Layer("image", str(tmp_path / "nothing"), "image")], port=port)
    socket.create_server(("127.0.0.1", port)).close()


def test_a_missing_client_is_refused_with_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    with pytest.raises(UsageError, match=r"pip install 'neurokube\[view\]'"):
        serve([Layer("image", str(folder / "image"), "image")])


def test_a_view_without_layers_or_with_two_of_one_name_is_refused(folder: Path) -> None:
    layer = Layer("image", str(folder / "image"), "image")
    with pytest.raises(UsageError, match="nothing to view"):
        serve([])
    with pytest.raises(UsageError, match="two layers have one name"):
        serve([layer, layer])
