// SPDX-License-Identifier: Apache-2.0
// The protocol of `aapt-fast serve`, version 1: one WebSocket, requests with answers, pictures, and connecting again.

import { readPicture } from "./picture_header.js";

const PROTOCOL = "aapt-fast.1";
const PING_MS = 2000;
const SLOWEST_RETRY_MS = 8000;
/** Close codes after which trying again cannot help. */
const FINAL = new Map([
  [4400, "The server did not understand this page. Reload it."],
  [4401, "The server asks for a token: open the address that it printed, with #token= at its end."],
  [4403, "The server does not accept pages from this address."],
]);

const WRONG_TOKEN = "The token of this address is not the server's. Open the address that the server printed last.";

/** An `error` of the server. */
export class ServerError extends Error {
  /** @param {{argument?: string, expected?: string, got?: string, message: string}} answer */
  constructor(answer) {
    super(answer.message);
    this.argument = answer.argument;
  }
}

/**
 * Emits "link" (detail: {state, text}), one event per type of message (detail: the message), and "picture" (detail: as
 * `readPicture` returns it). States: "connecting", "open", "waiting" (to try again), "refused" (for good).
 */
export class Connection extends EventTarget {
  /** @param {{url: string, token: string | null, codecs: string[]}} options */
  constructor({ url, token, codecs }) {
    super();
    this.url = url;
    this.token = token;
    this.codecs = codecs;
    this.state = "connecting";
    /** Milliseconds to the server and back, or null before the first answer. @type {number | null} */
    this.roundTrip = null;
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    this.requests = 0;
    this.failures = 0;
  }

  /** Connect now, and again whenever the connection is lost. */
  start() {
    clearTimeout(this.retry);
    this.#enter("connecting", this.failures ? "Connecting again" : "Connecting");
    const socket = new WebSocket(this.url, PROTOCOL);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    const hello = { type: "hello", version: 1, codecs: this.codecs, ...(this.token ? { token: this.token } : {}) };
    socket.onopen = () => {
      this.send(hello);
      this.#enter("connecting", "The model is being loaded");
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lost(event);
  }

  /** Send a message that has no answer; dropped while there is no connection. @param {object} message */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /**
   * Send a message and wait for its answer. Rejects with `ServerError`, or with Error if the connection is lost.
   * @param {string} type
   * @param {object} fields
   * @returns {Promise<any>}
   */
  request(type, fields) {
    if (this.state !== "open") return Promise.reject(new Error("There is no connection to the server."));
    const request = ++this.requests;
    return new Promise((resolve, reject) => {
      this.waiting.set(request, { resolve, reject });
      this.send({ type, request, ...fields });
    });
  }

  /** Fetch an address of the server with the token. Rejects with the server's text. @returns {Promise<Response>} */
  async fetch(path, options = {}) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const response = await fetch(path, { ...options, headers });
    if (!response.ok) throw new Error(await reason(response));
    return response;
  }

  #receive(data) {
    if (typeof data !== "string") {
      this.#emit("picture", readPicture(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "welcome") this.#welcome(message);
    if (message.type === "pong") this.roundTrip = performance.now() - message.time;
    if (message.request !== undefined) this.#answer(message);
    this.#emit(message.type, message);
  }

  #answer(message) {
    const waiting = this.waiting.get(message.request);
    this.waiting.delete(message.request);
    if (message.type === "error") waiting?.reject(new ServerError(message));
    else waiting?.resolve(message);
  }

  #welcome(message) {
    this.failures = 0;
    this.welcome = message;
    const ping = () => this.send({ type: "ping", time: performance.now() });
    ping();
    this.pings = setInterval(ping, PING_MS);
    this.#enter("open", "Connected");
  }

  #lost(event) {
    clearInterval(this.pings);
    for (const { reject } of this.waiting.values()) reject(new Error("The connection was lost."));
    this.waiting.clear();
    const final = FINAL.get(event.code);
    if (final) {
      this.#enter("refused", event.code === 4401 && this.token ? WRONG_TOKEN : final);
      return;
    }
    const text = event.code === 4409 ? "Server is full" : this.welcome ? "Connection lost" : "No server yet";
    const pause = Math.min(SLOWEST_RETRY_MS, 400 * 2 ** this.failures++) * (0.8 + 0.4 * Math.random());
    this.#enter("waiting", `${text}, trying again`);
    this.retry = setTimeout(() => this.start(), pause);
  }

  #enter(state, text) {
    this.state = state;
    this.#emit("link", { state, text });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** What a refused request says: the message of a JSON error, else the status. @param {Response} response */
async function reason(response) {
  try {
    const body = await response.json();
    return body.message ?? body.detail ?? `The server answered ${response.status}.`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
