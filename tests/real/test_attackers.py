"""Who attacks a consortium from the network: what is reachable, what is refused, and that the consortium goes on."""

import base64
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta

import httpx
import psutil
import pytest
from tests.real import helpers
from tests.real.consortium import part_of

from silotune.consortium.authority import draw_key, public_pem
from silotune.consortium.folder import open_consortium
from silotune.consortium.gateway import CALLS, MOST_BODY
from silotune.errors import FederationError, InputError
from silotune.silo.joining import ask

pytestmark = pytest.mark.real


@pytest.fixture
def address(consortium):
    consortium.up()
    return f"127.0.0.1:{consortium.port}"


@pytest.fixture
def client(consortium, address):
    context = ssl.create_default_context(cafile=str(consortium.folder / "ca.pem"))
    with httpx.Client(base_url=f"https://{address}", verify=context, timeout=60) as made:
        yield made


def told(token, name="north", node_key=None, silo_key="a" * 64):
    key = node_key or public_pem(draw_key().public_key()).decode()
    return {"token": token, "name": name, "node_key": key, "silo_key": silo_key}


def token_of(place):
    return json.loads(place.read_text())["token"]


def test_from_the_network_nothing_but_what_members_need_is_to_be_had(consortium, address, client):
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
    settings = open_consortium(consortium.folder).settings
    server = psutil.Process(consortium.started["server"].pid)
    listening = {
        (found.laddr.ip, found.laddr.port)
        for process in (server, *server.children(recursive=True))
        for found in process.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", settings.superlink_port), ("127.0.0.1", settings.port)}


def test_the_superlink_is_not_reached_from_another_address(tmp_path):
    """The gateway listens everywhere; what stands behind it does not."""
    from tests.real.consortium import RealConsortium

    own = [one.address for of in psutil.net_if_addrs().values() for one in of
           if one.family == socket.AF_INET and not one.address.startswith("127.")]  # fmt: skip
    if not own:
        pytest.skip("this machine has no address but loopback")
    made = RealConsortium(tmp_path / "consortium", listen="0.0.0.0")
    try:
        made.up()
        settings = open_consortium(made.folder).settings
        with socket.create_connection((own[0], settings.port), 10):
            pass
        with pytest.raises(OSError), socket.create_connection((own[0], settings.superlink_port), 10):
            pass
    finally:
        made.end()


def test_a_token_works_once_for_its_name_and_not_for_long(consortium, client):
    place = consortium.invite("north")
    token = token_of(place)
    refused = "this invitation is not open"
    for wrong in (told("x" * 43), told(token, "south"), told("")):
        answer = client.post("/silotune/v1/join", json=wrong)
        assert answer.status_code == 403 and refused in answer.json()["detail"]
    for wrong in (told(token, node_key="no key"), told(token, silo_key="short"), told(token) | {"more": "x"}, [1], "x"):
        assert client.post("/silotune/v1/join", json=wrong).status_code == 403
    right = told(token)
    assert client.post("/silotune/v1/join", json=right).status_code == 200
    for again in (right, told(token)):
        assert client.post("/silotune/v1/join", json=again).status_code == 403, "it was used"
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


def test_guessing_tokens_is_slowed_down(client):
    codes = {client.post("/silotune/v1/join", json=told("x" * 43)).status_code for _ in range(30)}
    assert codes == {403, 429}


def test_an_expelled_member_is_out_and_nobody_leaves_for_another(consortium, client, silos, tiny_base):
    house = consortium.join("ash", silos / "ash", tiny_base)
    key = json.loads((consortium.folder / "members.json").read_text())["members"][0]["node_key"]
    shown = {"flwr-public-key": base64.b64encode(key.encode()).decode()}
    assert client.post("/v1/fleet/pull-messages", content=b"", headers=shown).status_code == 401, "no signature"
    forged = {"name": "ash", "time": str(int(datetime.now(UTC).timestamp())), "proof": "0" * 128}
    assert client.post("/silotune/v1/leave", json=forged).status_code == 403
    helpers.run("consortium", "expel", consortium.folder, "ash")
    assert client.post("/silotune/v1/known", json={"node_key": key}).json() == {"name": None}
    said = helpers.start("silo", "doctor", house).communicate(timeout=helpers.PATIENCE)[0]
    assert "WRONG membership: the consortium does not know this silo's key" in said
    with pytest.raises(AssertionError, match="refuses"):
        helpers.run("silo", "leave", house)
    assert helpers.run("consortium", "invite", consortium.folder, "ash", "--out", consortium.folder.parent / "again")


def test_what_is_too_large_or_no_tls_or_half_is_cut_off(consortium, address, client):
    key = public_pem(draw_key().public_key()).decode()
    answer = client.post("/silotune/v1/join", json=told(token_of(consortium.invite("north")), node_key=key))
    assert answer.status_code == 200
    shown = {"flwr-public-key": base64.b64encode(key.encode()).decode()}
    huge = client.post(
        "/v1/fleet/push-object", headers={**shown, "content-length": str(10 << 30)}, content=iter([b"x"])
    )
    assert huge.status_code == 413

    def endless():
        for _ in range((MOST_BODY >> 20) + 8):
            yield b"x" * (1 << 20)

    try:
        code = client.post("/v1/fleet/push-object", headers=shown, content=endless()).status_code
    except httpx.HTTPError:
        code = 413  # it was cut off before it was all sent
    assert code == 413
    assert client.post("/silotune/v1/join", content=b"[" * 100_000).status_code in (403, 429)
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.settimeout(60)
        assert not plain.recv(10).startswith(b"HTTP/1.1 2")
    with socket.create_connection((host, int(port)), 10):  # one that says nothing keeps nobody out
        assert client.get("/silotune/v1/hello").status_code == 200
    assert part_of(consortium.started["server"], "gateway").memory_info().rss < 400 << 20


def test_a_member_trusts_no_other_server(consortium, address, tmp_path):
    """Another CA, another name, and no TLS: each is said, with what to do."""
    from silotune.consortium.authority import ca_certificate

    other = tmp_path / "other.pem"
    other.write_bytes(ca_certificate("other", draw_key()))
    with pytest.raises(FederationError, match="its certificate is not signed by the invitation's CA"):
        ask(address, "/silotune/v1/hello", other)
    with pytest.raises(FederationError, match="its certificate is not signed by the invitation's CA"):
        ask(address, "/silotune/v1/hello", None)
    with pytest.raises(FederationError, match="not for this name"):
        ask(f"127.0.0.2:{consortium.port}", "/silotune/v1/hello", consortium.folder / "ca.pem")
    with pytest.raises(FederationError, match="nothing listens there"):
        ask("127.0.0.1:1", "/silotune/v1/hello", consortium.folder / "ca.pem")
    with pytest.raises(InputError, match="not the certificates of a CA"):
        ask(address, "/silotune/v1/hello", tmp_path / "nothing.pem")


def test_another_members_name_is_not_taken(consortium, address, silos, tiny_base, make_recipe, tmp_path):
    """A member that calls itself otherwise is left out, and the run goes on without it."""
    from silotune.recipe import dump_recipe

    houses = [consortium.join(name, silos / name, tiny_base) for name in ("ash", "birch")]
    settings = houses[1] / "silo.toml"
    settings.write_text(settings.read_text().replace('"birch"', '"ash"', 1))
    for house in houses:
        consortium.silo(house)
    recipe = make_recipe(
        federation={"silos": 2, "minimum": 1, "threads": 1, "join_timeout": 45}, training={"rounds": 1}
    )
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    process = helpers.start("train", tmp_path / "recipe.toml", *consortium.deployed, "--out", tmp_path / "run")
    _, said = process.communicate(timeout=helpers.PATIENCE)
    assert process.returncode in (0, 2, 3), said
    assert "is not the one that federation.members names" in said or "is here already" in said


def test_a_certificate_is_renewed_without_a_word_to_the_members(consortium, address, client):
    before = (consortium.folder / "server.pem").read_bytes()
    helpers.run("consortium", "rotate", consortium.folder)
    assert (consortium.folder / "server.pem").read_bytes() != before

    def renewed():
        try:
            context = ssl.create_default_context(cafile=str(consortium.folder / "ca.pem"))
            with (
                socket.create_connection(("127.0.0.1", consortium.port), 5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
            ):
                shown = ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True))
            return shown.strip() == (consortium.folder / "server.pem").read_text().strip()
        except OSError:
            return False

    helpers.until(renewed, consortium.started["server"])
