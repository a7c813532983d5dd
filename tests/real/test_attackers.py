"""Who attacks a consortium from the network: what is reachable, what is refused, and that the consortium goes on."""

import base64
import json
import socket
import ssl
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import psutil
import pytest
from tests.real import helpers
from tests.real.consortium import RealConsortium, part_of

from silotune.consortium.authority import draw_key, public_pem
from silotune.consortium.folder import open_consortium
from silotune.consortium.gateway import CALLS, MOST_BODY
from silotune.errors import FederationError, InputError
from silotune.silo.joining import ask

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that listens on every address of this machine, for the tests that leave it as it is."""
    made = RealConsortium(tmp_path_factory.mktemp("attacked") / "consortium", listen="0.0.0.0")
    made.up()
    yield made
    made.end()


@contextmanager
def reaching(consortium):
    """What speaks with a consortium's gateway, and trusts its CA."""
    context = ssl.create_default_context(cafile=str(consortium.folder / "ca.pem"))
    with httpx.Client(base_url=f"https://127.0.0.1:{consortium.port}", verify=context, timeout=60) as made:
        yield made


@pytest.fixture
def client(server):
    with reaching(server) as made:
        yield made


def told(token, name="north", node_key=None, silo_key="a" * 64):
    key = node_key or public_pem(draw_key().public_key()).decode()
    return {"token": token, "name": name, "node_key": key, "silo_key": silo_key}


def token_of(place):
    return json.loads(place.read_text())["token"]


def test_from_the_network_nothing_but_what_members_need_is_to_be_had(server, client):
    """Whoever has the CA's certificate and nothing else starts no run, registers no node, takes no task."""
    for path in ("/", "/docs", "/openapi.json", "/health", "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes",
                 "/v1/runtime/acquire-task", "/v1/runtime/push-object", "/v1/fleet/register-node", "/v1/fleet/unregister-node",
                 "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/pull-messages/x"):  # fmt: skip
        for method in ("GET", "POST"):
            assert client.request(method, path, content=b"").status_code in (404, 405), path
    for call in CALLS:
        assert client.post(f"/v1/fleet/{call}", content=b"").status_code == 401, "no member's key"
        strange = base64.b64encode(public_pem(draw_key().public_key())).decode()
        answer = client.post(f"/v1/fleet/{call}", content=b"", headers={"flwr-public-key": strange})
        assert answer.status_code == 401, "an unregistered key"
    settings = open_consortium(server.folder).settings
    own = psutil.Process(server.started["server"].pid)
    listening = {
        (found.laddr.ip, found.laddr.port)
        for process in (own, *own.children(recursive=True))
        for found in process.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", settings.superlink_port), ("0.0.0.0", settings.port)}
    for address in [one.address for of in psutil.net_if_addrs().values() for one in of
                    if one.family == socket.AF_INET and not one.address.startswith("127.")]:  # fmt: skip
        with socket.create_connection((address, settings.port), 10):
            pass
        with pytest.raises(OSError), socket.create_connection((address, settings.superlink_port), 10):
            pass


def test_a_token_works_once_for_its_name_and_not_for_long_and_guessing_is_slowed_down(consortium):
    consortium.up()
    with reaching(consortium) as client:
        place = consortium.invite("north")
        token = token_of(place)
        refused = "this invitation is not open"
        for wrong in (told("x" * 43), told(token, "south"), told("")):
            answer = client.post("/silotune/v1/join", json=wrong)
            assert answer.status_code == 403 and refused in answer.json()["detail"]
        for wrong in (
            told(token, node_key="no key"),
            told(token, silo_key="short"),
            told(token) | {"more": "x"},
            [1],
            "x",
        ):
            assert client.post("/silotune/v1/join", json=wrong).status_code == 403
        right = told(token)
        assert client.post("/silotune/v1/join", json=right).status_code == 200
        assert client.post("/silotune/v1/join", json=right).status_code == 200, "the answer may have got lost"
        assert client.post("/silotune/v1/join", json=told(token)).status_code == 403, "it was used"
        other = token_of(consortium.invite("south"))
        same_key = client.post("/silotune/v1/join", json=told(other, "south"))  # its silo's key is another member's
        assert same_key.status_code == 403 and "another member has that key" in same_key.json()["detail"]
        book = consortium.folder / "members.json"
        kept = json.loads(book.read_text())
        assert token not in book.read_text() and other not in book.read_text(), "tokens are kept as their hashes"
        for opened in kept["invited"]:
            opened["until"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        book.write_text(json.dumps(kept))
        late = client.post("/silotune/v1/join", json=told(other, "south", silo_key="b" * 64))
        assert late.status_code == 403 and refused in late.json()["detail"]
        assert book.stat().st_mode & 0o777 == 0o600
        for name in ("ca.key", "server.key", "executor.secret"):
            assert (consortium.folder / name).stat().st_mode & 0o777 == 0o600
        codes = {client.post("/silotune/v1/join", json=told("x" * 43)).status_code for _ in range(30)}
        assert codes == {403, 429}


def test_an_expelled_member_is_out_and_nobody_leaves_for_another(consortium, silos, tiny_base):
    consortium.up()
    house = consortium.join("ash", silos / "ash", tiny_base)
    key = json.loads((consortium.folder / "members.json").read_text())["members"][0]["node_key"]
    shown = {"flwr-public-key": base64.b64encode(key.encode()).decode()}
    with reaching(consortium) as client:
        unsigned = {**shown, "content-type": "application/protobuf"}
        answer = client.post("/v1/fleet/pull-messages", content=b"", headers=unsigned)
        assert answer.status_code == 401, "no signature"
        forged = {"name": "ash", "time": str(int(datetime.now(UTC).timestamp())), "proof": "0" * 128}
        assert client.post("/silotune/v1/leave", json=forged).status_code == 403
        helpers.run("consortium", "expel", consortium.folder, "ash")
        assert client.post("/silotune/v1/known", json={"node_key": key}).json() == {"name": None}
    said = helpers.start("silo", "doctor", house).communicate(timeout=helpers.PATIENCE)[0]
    assert "WRONG membership: the consortium does not know this silo's key" in said
    with pytest.raises(AssertionError, match="refuses"):
        helpers.run("silo", "leave", house)
    again = consortium.folder.parent / "again"
    helpers.run("consortium", "invite", consortium.folder, "ash", "--out", again)
    helpers.run("silo", "join", again, "--data", silos / "ash", "--folder", house)
    assert "has left" in helpers.run("silo", "leave", house)


def test_what_is_too_large_or_no_tls_or_half_is_cut_off(server, client):
    key = public_pem(draw_key().public_key()).decode()
    answer = client.post("/silotune/v1/join", json=told(token_of(server.invite("north")), node_key=key))
    assert answer.status_code == 200
    shown = {"flwr-public-key": base64.b64encode(key.encode()).decode()}
    context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        head = f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\nflwr-public-key: {shown['flwr-public-key']}\r\n"
        wrapped.sendall(f"{head}content-length: {10 << 30}\r\n\r\nx".encode())
        assert b" 413 " in wrapped.recv(100), "ten gigabytes are refused before they come"

    def endless():
        for _ in range((MOST_BODY >> 20) + 8):
            yield b"x" * (1 << 20)

    try:
        code = client.post("/v1/fleet/push-object", headers=shown, content=endless()).status_code
    except httpx.HTTPError:
        code = 413  # it was cut off before it was all sent
    assert code == 413
    assert client.post("/silotune/v1/join", content=b"[" * 100_000).status_code in (403, 429)
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.settimeout(60)
        assert not plain.recv(10).startswith(b"HTTP/1.1 2")
    with socket.create_connection(("127.0.0.1", server.port), 10):  # one that says nothing keeps nobody out
        assert client.get("/silotune/v1/hello").status_code == 200
    assert part_of(server.started["server"], "gateway").memory_info().rss < 400 << 20


def test_a_member_trusts_no_other_server(server, tmp_path):
    """Another CA, another name, and no TLS: each is said, with what to do."""
    from silotune.consortium.authority import ca_certificate

    address, own = f"127.0.0.1:{server.port}", server.folder / "ca.pem"
    other = tmp_path / "other.pem"
    other.write_bytes(ca_certificate("other", draw_key()))
    with pytest.raises(FederationError, match="its certificate is not signed by the invitation's CA"):
        ask(address, "/silotune/v1/hello", other)
    with pytest.raises(FederationError, match="its certificate is not signed by the invitation's CA"):
        ask(address, "/silotune/v1/hello", None)
    with pytest.raises(FederationError, match="not for this name"):
        ask(f"127.0.0.2:{server.port}", "/silotune/v1/hello", own)
    with pytest.raises(FederationError, match="nothing listens there"):
        ask("127.0.0.1:1", "/silotune/v1/hello", own)
    with pytest.raises(InputError, match="not the certificates of a CA"):
        ask(address, "/silotune/v1/hello", tmp_path / "nothing.pem")


@pytest.mark.long
def test_another_members_name_is_not_taken(consortium, silos, tiny_base, make_recipe, tmp_path):
    """A member that calls itself otherwise is left out, and the run goes on without it."""
    from silotune.recipe import dump_recipe

    consortium.up()
    houses = [consortium.join(name, silos / name, tiny_base) for name in ("ash", "birch")]
    settings = houses[1] / "silo.toml"
    settings.write_text(settings.read_text().replace('"birch"', '"ash"', 1))
    for house in houses:
        consortium.silo(house)
    recipe = make_recipe(
        federation={"silos": 2, "minimum": 1, "threads": 1, "join_timeout": 15}, training={"rounds": 1}
    )
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    process = helpers.start("train", tmp_path / "recipe.toml", *consortium.deployed, "--out", tmp_path / "run")
    _, said = process.communicate(timeout=helpers.PATIENCE)
    assert process.returncode in (0, 2, 3), said
    assert "is not the one that federation.members names" in said or "is here already" in said


def test_a_certificate_is_renewed_without_a_word_to_the_members(server):
    before = (server.folder / "server.pem").read_bytes()
    helpers.run("consortium", "rotate", server.folder)
    assert (server.folder / "server.pem").read_bytes() != before

    def renewed():
        try:
            context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
            with (
                socket.create_connection(("127.0.0.1", server.port), 5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
            ):
                shown = ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True))
            return shown.strip() == (server.folder / "server.pem").read_text().strip()
        except OSError:
            return False

    helpers.until(renewed, server.started["server"])
