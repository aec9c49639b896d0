// The WebSocket to the server: OpenAI's Realtime protocol, and what happens when it drops.

const KEY = "echox-api-key"; // in sessionStorage
const NO_KEY = 4401; // the 401 of a refused handshake, which browsers do not show
const ENDED = 1000;
const RETRY_S = [1, 2, 4, 8, 15];
const UNSENT_BYTES = 4 << 20; // a network this far behind counts as a lost connection
const WAITING_EVENTS = 2000; // that are kept while a connection is made

/**
 * Sends and receives events, and connects again when the connection drops.
 *
 * `onState(name, details)` takes: connecting, open, waiting `{seconds, reason, wasOpen, unsent}`,
 * asleep (the server ended an idle session; the next event begins a new one), key `{wrong}`.
 * `onReady()` is called when a session begins, before what waits for it is sent; `onSent(event)`
 * for each event that is sent.
 */
export class Connection {
  constructor({ onEvent, onState, onReady, onSent }) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.onReady = onReady;
    this.onSent = onSent;
    this.socket = null;
    this.isOpen = false;
    this.isPaused = false; // until a key is given
    this.waiting = []; // events for the session that is being made
    this.failures = 0;
    this.timer = null;
  }

  static get hasKey() {
    return Boolean(sessionStorage.getItem(KEY));
  }

  useKey(key) {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    this.isPaused = false;
    this.renew();
  }

  /** Ends the session, with what the server knows of the conversation, and begins another. */
  renew() {
    const socket = this.socket;
    this.socket = null;
    this.isOpen = false;
    this.waiting = [];
    socket?.close(ENDED);
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    if (this.isPaused) this.onState("key", { wrong: false });
    if (this.isPaused || (this.socket && this.socket.readyState <= WebSocket.OPEN)) return;
    const url = new URL("/v1/realtime?model=echox", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const key = sessionStorage.getItem(KEY);
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch {
      this.askForKey(); // it has characters that a header cannot hold
      return;
    }
    this.socket = socket;
    this.onState("connecting", {});
    socket.onmessage = ({ data }) => this.take(socket, data);
    socket.onclose = (event) => this.close(socket, event);
  }

  take(socket, data) {
    if (socket !== this.socket) return;
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return; // no event of the protocol
    }
    if (event.type === "session.created") this.begin();
    this.onEvent(event);
  }

  begin() {
    this.isOpen = true;
    this.failures = 0;
    this.onReady();
    const waiting = this.waiting;
    this.waiting = [];
    for (const event of waiting) this.send(event);
    this.onState("open", {});
  }

  close(socket, { code, reason }) {
    if (socket !== this.socket) return;
    const wasOpen = this.isOpen;
    this.socket = null;
    this.isOpen = false;
    const unsent = this.waiting.length > 0;
    this.waiting = [];
    if (code === NO_KEY) this.askForKey();
    else if (code === ENDED && wasOpen) this.onState("asleep", {});
    else this.retry({ reason, wasOpen, unsent });
  }

  askForKey() {
    const wrong = Connection.hasKey;
    sessionStorage.removeItem(KEY);
    this.isPaused = true;
    this.onState("key", { wrong });
  }

  retry(details) {
    const seconds = RETRY_S[Math.min(this.failures, RETRY_S.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
    this.onState("waiting", { seconds, ...details });
  }

  /** Sends an event; where there is no session, one is made first. */
  send(event) {
    if (!this.isOpen) {
      if (this.waiting.length < WAITING_EVENTS) this.waiting.push(event);
      this.connect();
    } else if (this.socket.bufferedAmount > UNSENT_BYTES) {
      const socket = this.socket;
      this.close(socket, { code: 1006, reason: "the network is too slow" });
      socket.close();
    } else {
      this.socket.send(JSON.stringify(event));
      this.onSent(event);
    }
  }
}
