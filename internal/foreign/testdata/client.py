"""The checks with stomp.py: client.py HOST PORT VERSION [own-beats]

It says "ok CHECK" for each that passes and ends with 1 at the first that fails.
"""
import os
import queue
import sys
import threading
import traceback

import stomp

HOST, PORT, VERSION = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PATIENCE = 30
QUIET = 0.1
NAME = "py-" + VERSION + "."
LOGIN, PASSCODE = os.environ["CLIENT_LOGIN"], os.environ["CLIENT_PASSCODE"]
CONNECTION = {"1.1": stomp.Connection11, "1.2": stomp.Connection12}[VERSION]


class Peer(stomp.ConnectionListener):
    """A connected client. Bodies are bytes."""

    def __init__(self, passcode=PASSCODE, **options):
        self.lock = threading.Condition()
        self.receipts = {}
        self.errors = []
        self.beats = 0
        self.last = 0
        self.messages = {}
        self.connected = None
        self.told = threading.Event()
        self.lost = threading.Event()
        self.conn = CONNECTION([(HOST, PORT)], auto_decode=False, vhost="test", **options)
        self.conn.set_listener("peer", self)
        # Two beats that stomp.py 8.0 reads at once, after it was slow, are the begin of
        # a frame to it: it counts no more beats and loses the next frame.
        transport = self.conn.transport
        if "heartbeats" in options:
            transport.receive = lambda: transport.socket.recv(1)
        self.conn.connect(LOGIN, passcode, wait=True)  # it sends STOMP, not CONNECT
        # What waits there goes on before the listeners have CONNECTED.
        assert self.told.wait(PATIENCE), "no CONNECTED"

    def on_connected(self, frame):
        self.connected = frame
        self.told.set()

    def on_message(self, frame):
        self.messages[frame.headers["subscription"]].put(frame)

    def on_receipt(self, frame):
        with self.lock:
            self.receipts[frame.headers["receipt-id"]] = frame
            self.lock.notify_all()

    def on_error(self, frame):
        with self.lock:
            self.errors.append(frame.headers["message"])
            self.lock.notify_all()

    def on_heartbeat(self):
        with self.lock:
            self.beats += 1
            self.lock.notify_all()

    def on_disconnected(self):
        self.lost.set()

    def receipt(self, send):
        """Calls send(receipt) and waits for the receipt."""
        self.last += 1
        r = "receipt-%d" % self.last
        send(r)
        with self.lock:
            if not self.lock.wait_for(lambda: r in self.receipts or self.errors, PATIENCE):
                raise AssertionError("no RECEIPT " + r)
            assert r in self.receipts, self.errors
            return self.receipts.pop(r)

    def send(self, destination, body, **headers):
        content_type = headers.pop("content_type", None)
        return self.receipt(lambda r: self.conn.send(destination, body, content_type, dict(headers, receipt=r)))

    def subscribe(self, destination, id, ack="auto", **headers):
        self.messages[id] = queue.Queue()
        self.receipt(lambda r: self.conn.subscribe(destination, id, ack, dict(headers, receipt=r)))

    def unsubscribe(self, id):
        self.receipt(lambda r: self.conn.unsubscribe(id, {"receipt": r}))

    def next(self, id, want=None):
        frame = self.messages[id].get(timeout=PATIENCE)
        if want is not None:
            assert frame.body == want.encode(), (frame.body, want)
        return frame

    def silent(self, id):
        try:
            frame = self.messages[id].get(timeout=QUIET)
        except queue.Empty:
            return
        raise AssertionError("got %r" % frame.body)

    def ack(self, frame, nack=False, transaction=None, **headers):
        h = frame.headers
        method = self.conn.nack if nack else self.conn.ack
        ids = [h["message-id"], h["subscription"]] if VERSION == "1.1" else [h["ack"]]
        return self.receipt(lambda r: method(*ids, transaction=transaction, receipt=r, **headers))

    def count(self, name):
        return int(self.send("/control/count-msgs/queue/" + name, "").headers["num-messages"])

    def close(self):
        self.receipt(lambda r: self.conn.disconnect(r))


def fill(p, name, *bodies):
    for body in bodies:
        p.send("/queue/" + name, body)


def left(name, *bodies):
    """Asserts what a queue still gives to a new client, and takes it."""
    p = Peer()
    p.subscribe("/queue/" + name, "left", "client-individual")
    for body in bodies:
        p.ack(p.next("left", body))
    assert p.count(name) == 0, p.count(name)
    p.close()


def login():
    p = Peer()
    assert p.connected.headers["version"] == VERSION, p.connected
    assert p.connected.headers["server"].startswith("mvalve"), p.connected
    p.close()
    try:
        Peer(passcode="wrong")
    except stomp.exception.ConnectFailedException:
        return
    raise AssertionError("a wrong passcode connects")


def receipt():
    p = Peer()
    p.send("/queue/" + NAME + "receipt", "one")
    assert p.count(NAME + "receipt") == 1
    p.close()


def auto():
    p, q = Peer(), NAME + "auto"
    p.subscribe("/queue/" + q, "s")
    fill(p, q, "a", "b", "c")
    for body in "a", "b", "c":
        p.next("s", body)
    p.unsubscribe("s")
    fill(p, q, "d")
    p.silent("s")
    p.close()
    left(q, "d")


def client():
    p, q = Peer(), NAME + "client"
    fill(p, q, "1", "2", "3", "4")
    p.subscribe("/queue/" + q, "s", "client")
    all = [p.next("s", body) for body in ("1", "2", "3", "4")]
    p.ack(all[2])  # and with it 1 and 2
    p.close()
    left(q, "4")


def individual():
    p, q = Peer(), NAME + "individual"
    fill(p, q, "1", "2", "3")
    p.subscribe("/queue/" + q, "s", "client-individual")
    all = [p.next("s", body) for body in ("1", "2", "3")]
    p.ack(all[1])
    p.close()
    left(q, "1", "3")


def nack():
    p, q = Peer(), NAME + "nack"
    fill(p, q, "again", "never")
    p.subscribe("/queue/" + q, "s", "client-individual")
    m = p.next("s", "again")
    other = p.next("s", "never")
    assert m.headers["redelivered"] == "false", m.headers
    p.ack(m, nack=True)
    m = p.next("s", "again")
    assert m.headers["redelivered"] == "true", m.headers
    assert m.headers["x-delivery-count"] == "2", m.headers
    p.ack(m)
    p.ack(other, nack=True, requeue="false")
    p.silent("s")
    assert p.count(q) == 0
    p.close()


def abort():
    p, q = Peer(), NAME + "abort"
    fill(p, q, "kept")
    p.subscribe("/queue/" + q, "s", "client-individual")
    m = p.next("s", "kept")
    tx = p.conn.begin()
    p.send("/queue/" + q, "never", transaction=tx)
    p.ack(m, transaction=tx)
    p.conn.abort(tx)
    p.close()
    left(q, "kept")


def commit():
    p, q = Peer(), NAME + "commit"
    fill(p, q, "taken")
    p.subscribe("/queue/" + q, "s", "client-individual")
    m = p.next("s", "taken")
    tx = p.conn.begin()
    p.send("/queue/" + q, "one", transaction=tx)
    p.send("/queue/" + q, "two", transaction=tx)
    p.ack(m, transaction=tx)
    p.silent("s")  # S100
    p.receipt(lambda r: p.conn.commit(tx, {"receipt": r}))
    p.next("s", "one")
    p.next("s", "two")
    p.close()
    left(q, "one", "two")


def headers():
    p, q = Peer(), NAME + "headers/a:b\\c\u0142 \u2603"
    p.subscribe("/queue/" + q, "s")
    sent = {
        "colon": "a:b::c", "backslash": "a\\b\\n\\c\\\\", "newline": "one\ntwo", "unicode": "\u017c\u00f3\u0142w \U0001f600",
        "space": " lead and trail ", "content-type": "application/json;charset=utf-8",
    }
    if VERSION == "1.2":
        sent["return"] = "one\r\ntwo"  # cannot be said in 1.1
    p.send("/queue/" + q, "{}", **sent)
    m = p.next("s", "{}")
    for key, value in sent.items():
        assert m.headers.get(key) == value, (key, m.headers.get(key), value)
    assert m.headers["destination"] == "/queue/" + q, m.headers
    p.close()


def bodies():
    p, q = Peer(), NAME + "bodies"
    p.subscribe("/queue/" + q, "s")
    every = bytes(range(256)) * 2
    for body in every, b"\x00", b"\n\x00\n", b"\xff\xfe", b"\x07" * 300000, b"0", b" ", b"\r\n", b"a\x00\nMESSAGE\n\n\x00":
        p.send("/queue/" + q, body)
        got = p.next("s").body
        assert got == body, (got[:50], body[:50])
    p.send("/queue/" + q, "\u017c\u00f3\u0142w")
    p.next("s", "\u017c\u00f3\u0142w")
    p.send("/queue/" + q, "")
    p.next("s", "")
    p.close()


def prefetch():
    p = Peer()
    for header in "prefetch-count", "activemq.prefetchSize", "prefetch":
        q = NAME + header
        fill(p, q, "1", "2", "3", "4")
        p.subscribe("/queue/" + q, header, "client-individual", **{header: "2"})
        first = p.next(header, "1")
        p.next(header, "2")
        p.silent(header)
        p.ack(first)
        p.next(header, "3")
        p.silent(header)
        p.unsubscribe(header)
    p.close()


def reply():
    worker, asker, q = Peer(), Peer(), "/queue/" + NAME + "requests"
    worker.subscribe(q, "w", "client-individual")
    answers = "/temp-queue/answers"
    asker.messages[answers] = queue.Queue()
    asker.send(q, "6*7", **{"reply-to": answers, "correlation-id": "c:1"})
    request = worker.next("w", "6*7")
    worker.send(request.headers["reply-to"], "42", **{"correlation-id": request.headers["correlation-id"]})
    answer = asker.next(answers, "42")
    assert answer.headers["correlation-id"] == "c:1", answer.headers
    # The same with a SUBSCRIBE of one's own.
    asker.subscribe("/temp-queue/mine", "mine", "client-individual")
    asker.send(q, "1+1", **{"reply-to": "/temp-queue/mine"})
    worker.send(worker.next("w", "1+1").headers["reply-to"], "2")
    asker.ack(asker.next("mine", "2"))
    asker.close()
    worker.close()


def topic():
    p = Peer()
    p.subscribe("/topic/" + NAME + "news", "one")
    p.subscribe("/topic/" + NAME + "*", "all")
    p.send("/topic/" + NAME + "news", "hot")
    p.next("one", "hot")
    m = p.next("all", "hot")
    assert m.headers["destination"] == "/topic/" + NAME + "news", m.headers
    p.send("/topic/" + NAME + "other", "cold")
    p.next("all", "cold")
    p.silent("one")
    p.close()


def heart_beat():
    """The server beats, soon. How late a beat may be depends on the machine."""
    p = Peer(heartbeats=(10000, 150), heart_beat_receive_scale=100)
    assert p.connected.headers["heart-beat"] == "150,10000", p.connected
    with p.lock:  # nothing else passes
        assert p.lock.wait_for(lambda: p.beats >= 5, PATIENCE), "%d heart-beats" % p.beats
    p.send("/queue/" + NAME + "beats", "alive")
    assert not p.lost.is_set(), "connection lost while idle"
    p.close()


def own_beats():
    """The client's beats alone keep an idle connection."""
    p = Peer(heartbeats=(7000, 0))
    assert p.connected.headers["heart-beat"] == "0,7000", p.connected
    # Without them the server gives up two intervals after CONNECT, not a moment
    # before: a beat that is late by most of an interval is missed by nobody.
    assert not p.lost.wait(16), "connection lost while idle"
    p.send("/queue/" + NAME + "own-beats", "alive")
    p.close()


def restart():
    p, q = Peer(), NAME + "restart"
    fill(p, q, "acked", "held", "kept")
    p.subscribe("/queue/" + q, "s", "client-individual")
    p.ack(p.next("s", "acked"))
    p.next("s", "held")
    p.next("s", "kept")
    print("restart", flush=True)
    sys.stdin.readline()
    assert p.lost.wait(PATIENCE), "the end of the broker was not noticed"
    p.conn.connect(LOGIN, PASSCODE, wait=True)  # the same client again
    p.subscribe("/queue/" + q, "again", "client-individual")
    seen = set()
    while len(seen) < 2:
        m = p.next("again")
        assert m.headers["redelivered"] == "true", m
        p.ack(m)
        seen.add(m.body)
    assert seen == {b"held", b"kept"}, seen
    assert p.count(q) == 0
    p.close()


ALL = (login, receipt, auto, client, individual, nack, abort, commit, headers, bodies,
       prefetch, reply, topic, heart_beat, restart)
for check in (own_beats,) if sys.argv[4:] == ["own-beats"] else ALL:
    name = check.__name__.replace("_", "-")
    try:
        check()
    except BaseException:
        print("not ok %s: %s" % (name, traceback.format_exc().replace("\n", " ")), flush=True)
        os._exit(1)
    print("ok " + name, flush=True)
os._exit(0)  # threads of the library may still wait
