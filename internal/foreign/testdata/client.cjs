// The checks with @stomp/stompjs: node client.cjs ws://HOST:PORT/stomp|tcp://HOST:PORT [own-beats]
// It says "ok CHECK" for each that passes and ends with 1 at the first that fails.
'use strict';
const assert = require('node:assert/strict');
const net = require('node:net');
const readline = require('node:readline');
const {setTimeout: sleep} = require('node:timers/promises');
const {Client, StompSocketState} = require('@stomp/stompjs');
const WebSocket = require('ws');

const url = new URL(process.argv[2]);
const patience = 30000;
const quiet = 100;
const name = 'js-' + url.protocol.replace(':', '') + '.';
const input = readline.createInterface({input: process.stdin});
const lines = input[Symbol.asyncIterator]();

// TCPSocket has the part of a WebSocket that stompjs uses.
class TCPSocket {
  constructor() {
    this.url = url.href;
    this.readyState = StompSocketState.CONNECTING;
    this.socket = net.connect(Number(url.port), url.hostname);
    this.socket.setNoDelay(true);
    this.socket.on('connect', () => {
      this.readyState = StompSocketState.OPEN;
      this.onopen?.();
    });
    this.socket.on('data', data => this.onmessage?.({
      data: data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength),
    }));
    this.socket.on('error', err => this.onerror?.(err));
    this.socket.on('close', () => {
      this.readyState = StompSocketState.CLOSED;
      this.onclose?.({code: 1000, reason: '', wasClean: true});
    });
  }
  send(data) {
    this.socket.write(typeof data === 'string' ? data : Buffer.from(data));
  }
  close() {
    this.readyState = StompSocketState.CLOSING;
    this.socket.end();
  }
}

function within(promise, what, ms = patience) {
  const stop = new AbortController();
  return Promise.race([
    promise.finally(() => stop.abort()),
    sleep(ms, null, {signal: stop.signal}).then(() => assert.fail('not within ' + ms + ' ms: ' + what)),
  ]);
}

// Peer is a connected client.
class Peer {
  static async connect(config = {}) {
    const p = new Peer();
    p.receipts = 0;
    p.errors = [];
    p.connects = 0;
    const settled = new Promise((resolve, reject) => {
      p.client = new Client({
        webSocketFactory: () => url.protocol === 'tcp:' ? new TCPSocket()
          : new WebSocket(url.href, ['v12.stomp', 'v11.stomp', 'v10.stomp']),
        connectHeaders: {login: process.env.CLIENT_LOGIN, passcode: process.env.CLIENT_PASSCODE, host: 'test'},
        reconnectDelay: 0,
        heartbeatIncoming: 0,
        heartbeatOutgoing: 0,
        forceBinaryWSFrames: true,
        ...config,
        onConnect: frame => {
          p.connects++;
          p.frame = frame;
          config.onConnect?.(p);
          resolve();
        },
        onStompError: frame => {
          p.errors.push(frame.headers.message);
          reject(new Error(frame.headers.message + ': ' + frame.body));
        },
      });
      p.client.activate();
    });
    await within(settled, 'CONNECTED');
    return p;
  }

  // receipt has send(headers) send a frame with a receipt and waits for it.
  receipt(send) {
    const id = 'receipt-' + (++this.receipts);
    return within(new Promise(resolve => {
      this.client.watchForReceipt(id, resolve);
      send({receipt: id});
    }), id + ' (' + this.errors + ')');
  }

  send(destination, body, headers = {}) {
    return this.receipt(r => this.client.publish({destination, ...(typeof body === 'string' ? {body} : {binaryBody: body}), headers: {...headers, ...r}}));
  }

  async subscribe(destination, ack = 'auto', headers = {}) {
    const s = new Inbox();
    await this.receipt(r => {
      s.handle = this.client.subscribe(destination, m => s.take(m), {ack, ...headers, ...r});
    });
    return s;
  }

  async count(queue) {
    const frame = await this.send('/control/count-msgs/queue/' + queue, '');
    return Number(frame.headers['num-messages']);
  }

  close() {
    return within(this.client.deactivate(), 'DISCONNECT');
  }
}

// Inbox keeps messages for next.
class Inbox {
  messages = [];
  waiting = null;

  take(m) {
    if (this.waiting) {
      const give = this.waiting;
      this.waiting = null;
      give(m);
    } else {
      this.messages.push(m);
    }
  }

  async next(want) {
    const got = this.messages.length ? Promise.resolve(this.messages.shift()) : new Promise(resolve => { this.waiting = resolve; });
    const m = await within(got, 'MESSAGE ' + want);
    if (want !== undefined) {
      assert.equal(m.body, want);
    }
    return m;
  }

  async silent() {
    await sleep(quiet);
    assert.deepEqual(this.messages.map(m => m.body), [], 'nothing more');
  }
}

// fill sends bodies to a queue.
async function fill(peer, queue, ...bodies) {
  for (const body of bodies) {
    await peer.send('/queue/' + queue, body);
  }
}

// left asserts what a queue still gives to a new client, and takes it.
async function left(queue, ...bodies) {
  const p = await Peer.connect();
  const s = await p.subscribe('/queue/' + queue, 'client-individual');
  for (const body of bodies) {
    const m = await s.next(body);
    await p.receipt(r => m.ack(r));
  }
  assert.equal(await p.count(queue), 0);
  await p.close();
}

const checks = {
  async login() {
    const p = await Peer.connect();
    assert.match(p.frame.headers.server, /^mvalve/);
    assert.equal(p.frame.headers.version, '1.2');
    await p.close();
    await assert.rejects(Peer.connect({connectHeaders: {login: process.env.CLIENT_LOGIN, passcode: 'wrong'}}), /access refused|login/i);
  },

  async receipt() {
    const p = await Peer.connect();
    await p.send('/queue/' + name + 'receipt', 'one');
    assert.equal(await p.count(name + 'receipt'), 1);
    await p.close();
  },

  async auto() {
    const p = await Peer.connect();
    const q = name + 'auto';
    const s = await p.subscribe('/queue/' + q);
    await fill(p, q, 'a', 'b', 'c');
    for (const body of ['a', 'b', 'c']) {
      await s.next(body);
    }
    await p.receipt(r => s.handle.unsubscribe(r));
    await fill(p, q, 'd');
    await s.silent();
    await p.close();
    await left(q, 'd');
  },

  async client() {
    const p = await Peer.connect();
    const q = name + 'client';
    await fill(p, q, '1', '2', '3', '4');
    const s = await p.subscribe('/queue/' + q, 'client');
    const all = [];
    for (const body of ['1', '2', '3', '4']) {
      all.push(await s.next(body));
    }
    await p.receipt(r => all[2].ack(r)); // and with it 1 and 2
    await p.close();
    await left(q, '4');
  },

  async individual() {
    const p = await Peer.connect();
    const q = name + 'individual';
    await fill(p, q, '1', '2', '3');
    const s = await p.subscribe('/queue/' + q, 'client-individual');
    await s.next('1');
    const second = await s.next('2');
    await s.next('3');
    await p.receipt(r => second.ack(r));
    await p.close();
    await left(q, '1', '3');
  },

  async nack() {
    const p = await Peer.connect();
    const q = name + 'nack';
    await fill(p, q, 'again', 'never');
    const s = await p.subscribe('/queue/' + q, 'client-individual');
    let m = await s.next('again');
    const other = await s.next('never');
    assert.equal(m.headers.redelivered, 'false');
    await p.receipt(r => m.nack(r));
    m = await s.next('again');
    assert.equal(m.headers.redelivered, 'true');
    assert.equal(m.headers['x-delivery-count'], '2');
    await p.receipt(r => m.ack(r));
    await p.receipt(r => other.nack({requeue: 'false', ...r}));
    await s.silent();
    assert.equal(await p.count(q), 0);
    await p.close();
  },

  async abort() {
    const p = await Peer.connect();
    const q = name + 'abort';
    await fill(p, q, 'kept');
    const s = await p.subscribe('/queue/' + q, 'client-individual');
    const m = await s.next('kept');
    const tx = p.client.begin();
    await p.send('/queue/' + q, 'never', {transaction: tx.id});
    await p.receipt(r => m.ack({transaction: tx.id, ...r}));
    tx.abort();
    await p.close();
    await left(q, 'kept');
  },

  async commit() {
    const p = await Peer.connect();
    const q = name + 'commit';
    await fill(p, q, 'taken');
    const s = await p.subscribe('/queue/' + q, 'client-individual');
    const m = await s.next('taken');
    const tx = p.client.begin();
    await p.send('/queue/' + q, 'one', {transaction: tx.id});
    await p.send('/queue/' + q, 'two', {transaction: tx.id});
    await p.receipt(r => m.ack({transaction: tx.id, ...r}));
    await s.silent(); // S100
    tx.commit();
    await s.next('one');
    await s.next('two');
    await p.close();
    await left(q, 'one', 'two');
  },

  async headers() {
    const p = await Peer.connect();
    const q = name + 'headers/a:b\\d Ünï ☃';
    const s = await p.subscribe('/queue/' + q);
    // stompjs trims values when it reads, and undoes escapes one after the other: no
    // blanks at the ends, and no backslash before r, n or c. Other clients have them.
    const sent = {
      colon: 'a:b::c', backslash: 'a\\b\\\\d\\', newline: 'one\ntwo\r\nthree', unicode: 'żółw ☃ 😀',
      space: 'a  b', empty: '', 'content-type': 'application/json;charset=utf-8',
    };
    await p.send('/queue/' + q, '{}', sent);
    const m = await s.next('{}');
    for (const [key, value] of Object.entries(sent)) {
      assert.equal(m.headers[key], value, key);
    }
    assert.equal(m.headers.destination, '/queue/' + q);
    await p.close();
  },

  async bodies() {
    const p = await Peer.connect();
    const q = name + 'bodies';
    const s = await p.subscribe('/queue/' + q);
    const all = Uint8Array.from({length: 512}, (_, i) => i % 256);
    for (const body of [all, Uint8Array.of(0), Uint8Array.of(10, 0, 10), new Uint8Array(300000).fill(7)]) {
      await p.send('/queue/' + q, body, {'content-type': 'application/octet-stream'});
      assert.deepEqual((await s.next()).binaryBody, body);
    }
    for (const body of ['', '0', ' ', '\n', '\r\n', 'żółw 😀', 'MESSAGE\n\n']) {
      await p.send('/queue/' + q, body);
      await s.next(body);
    }
    await p.close();
  },

  async prefetch() {
    const p = await Peer.connect();
    for (const header of ['prefetch-count', 'activemq.prefetchSize', 'prefetch']) {
      const q = name + header;
      await fill(p, q, '1', '2', '3', '4');
      const s = await p.subscribe('/queue/' + q, 'client-individual', {[header]: '2'});
      const first = await s.next('1');
      await s.next('2');
      await s.silent();
      await p.receipt(r => first.ack(r));
      await s.next('3');
      await s.silent();
      s.handle.unsubscribe();
    }
    await p.close();
  },

  async reply() {
    const worker = await Peer.connect();
    const requests = await worker.subscribe('/queue/' + name + 'requests', 'client-individual');
    const unhandled = new Inbox();
    const asker = await Peer.connect({onUnhandledMessage: m => unhandled.take(m)});
    await asker.send('/queue/' + name + 'requests', '6*7', {'reply-to': '/temp-queue/answers', 'correlation-id': 'c:1'});
    const request = await requests.next('6*7');
    await worker.send(request.headers['reply-to'], '42', {'correlation-id': request.headers['correlation-id']});
    const answer = await unhandled.next('42');
    assert.equal(answer.headers.subscription, '/temp-queue/answers');
    assert.equal(answer.headers['correlation-id'], 'c:1');
    // The same with a SUBSCRIBE of one's own.
    const mine = await asker.subscribe('/temp-queue/mine', 'client-individual');
    await asker.send('/queue/' + name + 'requests', '1+1', {'reply-to': '/temp-queue/mine'});
    const second = await requests.next('1+1');
    await worker.send(second.headers['reply-to'], '2');
    const got = await mine.next('2');
    await asker.receipt(r => got.ack(r));
    await asker.close();
    await worker.close();
  },

  async topic() {
    const p = await Peer.connect();
    const one = await p.subscribe('/topic/' + name + 'news');
    const all = await p.subscribe('/topic/' + name + '*');
    await p.send('/topic/' + name + 'news', 'hot');
    await one.next('hot');
    assert.equal((await all.next('hot')).headers.destination, '/topic/' + name + 'news');
    await p.send('/topic/' + name + 'other', 'cold');
    await all.next('cold');
    await one.silent();
    await p.close();
  },

  async 'heart-beat'() {
    // The server beats, soon. How late a beat may be depends on the machine.
    let beats = 0;
    let five;
    const enough = new Promise(resolve => { five = resolve; });
    const p = await Peer.connect({
      heartbeatIncoming: 150, heartbeatOutgoing: 10000, heartbeatToleranceMultiplier: 100,
      onHeartbeatReceived: () => { if (++beats === 5) five(); },
    });
    assert.equal(p.frame.headers['heart-beat'], '150,10000');
    await within(enough, 'five heart-beats'); // nothing else passes
    await p.send('/queue/' + name + 'beats', 'alive');
    assert.equal(p.connects, 1);
    await p.close();
  },

  async restart() {
    const q = name + 'restart';
    const got = new Inbox();
    const p = await Peer.connect({
      reconnectDelay: 50,
      onConnect: peer => peer.client.subscribe('/queue/' + q, m => got.take(m), {ack: 'client-individual'}),
    });
    await fill(p, q, 'acked', 'held', 'kept');
    const first = await got.next('acked');
    await p.receipt(r => first.ack(r));
    await got.next('held');
    await got.next('kept');
    console.log('restart');
    await lines.next();
    const seen = new Map();
    while (seen.size < 2) {
      const m = await got.next();
      assert.equal(m.headers.redelivered, 'true', m.body);
      await p.receipt(r => m.ack(r));
      seen.set(m.body, true);
    }
    assert.deepEqual([...seen.keys()].sort(), ['held', 'kept']);
    assert.equal(p.connects, 2);
    assert.equal(await p.count(q), 0);
    await p.close();
  },
};

// The checks that run only when they are asked for.
const others = {
  // The client's beats alone keep an idle connection.
  async 'own-beats'() {
    const p = await Peer.connect({heartbeatOutgoing: 7000});
    assert.equal(p.frame.headers['heart-beat'], '0,7000');
    // Without them the server gives up two intervals after CONNECT, not a moment
    // before: a beat that is late by most of an interval is missed by nobody.
    await sleep(16000);
    assert.ok(p.client.connected, 'connection lost while idle');
    await p.send('/queue/' + name + 'own-beats', 'alive');
    await p.close();
  },
};

async function main() {
  const other = process.argv[3];
  for (const [check, run] of Object.entries(other ? {[other]: others[other]} : checks)) {
    try {
      await run();
    } catch (err) {
      console.log('not ok ' + check + ': ' + String(err.stack).replaceAll('\n', ' '));
      process.exit(1);
    }
    console.log('ok ' + check);
  }
  process.exit(0);
}

main();
