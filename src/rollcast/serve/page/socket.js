// The session on a WebSocket: it connects, comes back, and gives the page the session's notices.

import { Session } from "./session.js";

/** @typedef {import("./session.js").Notice} Notice */
/** @typedef {import("./session.js").Frame} Frame */
/** @typedef {import("./session.js").Query} Query */
/** @typedef {import("./session.js").Filter} Filter */

const TICK_MS = 100;
const HIDDEN_MS = 5_000; // a page that is hidden for so long lets go of the server

export class Socket {
  /**
   * @param {string} url `ws://…` or `wss://…`
   * @param {(notices: Notice[]) => void} onNotices what came; also called without notices when the state may have changed
   * @param {{token?: string | null, WebSocket?: typeof WebSocket, now?: () => number, epoch?: () => number}} [options] see `Session`
   */
  constructor(
    url,
    onNotices,
    { token = null, WebSocket: Implementation = WebSocket, now = () => performance.now() / 1000, epoch = () => Date.now() / 1000 } = {},
  ) {
    this.url = url;
    this.onNotices = onNotices;
    this.Implementation = Implementation;
    this.session = new Session({
      token,
      now,
      epoch,
      random: Math.random,
    });
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.retry = undefined;
    /** @type {number | null} when it will try again, on the session's clock; null: it is trying, or will not */
    this.retryAt = null;
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.asleep = false;
    this.ended = false;
    this.numbers = 0;
  }

  /** Connect, unless it is connected. */
  connect() {
    clearTimeout(this.retry);
    if (this.socket !== null || this.ended || this.asleep) return;
    const socket = new this.Implementation(this.url, "rollcast.v1");
    this.socket = socket;
    this.session.dialed();
    this.retryAt = null;
    socket.onopen = () => {
      if (this.socket !== socket) return;
      this.send(this.session.opened());
      this.onNotices([]);
    };
    socket.onmessage = ({ data }) => {
      if (this.socket === socket && typeof data === "string") this.take(this.session.receive(data));
    };
    socket.onclose = ({ code, reason }) => this.gone(socket, code, reason);
  }

  /**
   * @param {WebSocket} socket
   * @param {number} code
   * @param {string} reason
   */
  gone(socket, code, reason) {
    if (this.socket !== socket) return; // it was let go of before
    this.socket = null;
    const pause = this.session.closed(code, reason);
    if (pause !== null && !this.ended && !this.asleep) {
      this.retryAt = this.session.now() + pause;
      this.retry = setTimeout(() => this.connect(), pause * 1000);
    }
    this.onNotices([]);
  }

  tick() {
    const before = this.session.state.word;
    const { jumped, frames } = this.session.watchClock();
    this.send(frames);
    if (jumped) this.hurry();
    this.send(this.session.tick());
    if (this.session.isSilent && this.socket !== null) this.drop("the server does not answer");
    if (this.session.state.word !== before) this.onNotices([]);
  }

  /** Connect now rather than after the pause, as when the network has come back. */
  hurry() {
    if (this.socket === null && this.session.phase !== "refused") this.connect();
  }

  /** Connect with another token, such as that of a new link. @param {string | null} token */
  useToken(token) {
    this.drop("the page has another token");
    this.session.useToken(token);
    this.connect();
    this.onNotices([]);
  }

  /** Let go of the connection, without waiting for the server to agree. @param {string} why */
  drop(why) {
    const socket = this.socket;
    if (socket === null) return;
    socket.close();
    this.gone(socket, 1006, why);
  }

  /** End it for good. */
  close() {
    this.ended = true;
    clearInterval(this.timer);
    clearTimeout(this.retry);
    this.drop("the page was left");
  }

  /** Let go of the server while nobody looks; `wake` resumes where it was. */
  sleep() {
    this.asleep = true;
    clearTimeout(this.retry);
    this.drop("the page was hidden");
  }

  wake() {
    if (!this.asleep) return;
    this.asleep = false;
    this.connect();
  }

  /**
   * Sleep while a document is hidden, and hurry when the browser finds the network again.
   * @param {Document} document
   */
  follow(document) {
    document.defaultView?.addEventListener("online", () => this.hurry());
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    document.addEventListener("visibilitychange", () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(() => this.sleep(), HIDDEN_MS);
      else this.wake();
    });
  }

  // -- what the page asks for -------------------------------------------------------------------------------------------

  /** An id that no request has yet. @param {string} word */
  id(word) {
    this.numbers += 1;
    return `${word}-${this.numbers}`;
  }

  /** See `Session.subscribe`. @param {string} id @param {Filter} filter @param {Parameters<Session["subscribe"]>[2]} [options] */
  subscribe(id, filter, options) {
    this.send(this.session.subscribe(id, filter, options));
  }

  /** See `Session.replay`. @param {string} id @param {Filter} filter @param {Parameters<Session["replay"]>[2]} options */
  replay(id, filter, options) {
    this.send(this.session.replay(id, filter, options));
  }

  /** @param {string} id @param {Filter} filter */
  update(id, filter) {
    this.send(this.session.update(id, filter));
  }

  /** @param {string} id */
  unsubscribe(id) {
    this.send(this.session.unsubscribe(id));
  }

  /** See `Session.ask`. @param {Query} query @param {string} [id] @returns {string} the id under which answers come */
  ask(query, id = this.id(query.what)) {
    this.send(this.session.ask(id, query));
    return id;
  }

  /** @param {string} id */
  stop(id) {
    this.send(this.session.stop(id));
  }

  /**
   * See `Session.cancel`.
   * @param {string} runId
   * @param {{chain?: string, group?: string}} [part]
   * @returns {string | null} the id of the answer; null if there is no connection
   */
  cancel(runId, part) {
    if (this.session.phase !== "open") return null;
    const id = this.id("cancel");
    this.send(this.session.cancel(id, runId, part));
    return id;
  }

  /** @param {string} id @param {{cursor: string} | {time: number}} place */
  seek(id, place) {
    this.send(this.session.seek(id, place));
  }

  /** @param {string} id @param {number | "max"} speed */
  speed(id, speed) {
    this.send(this.session.speed(id, speed));
  }

  pause() {
    this.session.pause();
    this.onNotices([]);
  }

  resume() {
    this.take(this.session.resume());
  }

  /** @param {{frames: Frame[], notices: Notice[]}} output */
  take({ frames, notices }) {
    this.send(frames);
    this.onNotices(notices);
  }

  /** @param {Frame[]} frames */
  send(frames) {
    if (this.socket === null || this.socket.readyState !== 1) return;
    for (const frame of frames) this.socket.send(JSON.stringify(frame));
  }
}
