// The page's side of `rollcast.v1` as a state machine without I/O: frames come in, frames and notices go out.
//
//   opened() ─▶ hello          receive(text) ─▶ frames to send, notices          tick() ─▶ frames that are due
//   dialed()                   closed(code) ─▶ seconds until the next attempt, or null if the server does not want this page back
//
// Over any number of connections it resumes each subscription from its cursor and asks unanswered queries again. What the server no longer
// has comes as `gap` events. A caller sends the returned frames in order, as JSON.

import { frameOf } from "./frames.js";
import { Losses } from "./losses.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */
/** @typedef {{runs?: string[], chains?: string[], groups?: string[], types?: string[]}} Filter null or absent: all */
/** @typedef {{type: string} & Record<string, any>} Frame */
/** @typedef {{run_id: string, parent_run_id: string | null, status: string, chains: number}} RunInfo */

/**
 * @typedef {{what: "runs" | "chains" | "chain" | "steps" | "sources", run?: string, chain?: string, filter?: Record<string, any>, sort?: string,
 *   after?: string, limit?: number, watch?: boolean, recorded?: boolean}} Query
 */

/**
 * What the session reports to its caller:
 *
 * - `events`: of a subscription, in order.
 * - `rows`: of a query; `changed` as with `watch`. `anew`: what came of this query before no longer counts, since it was asked again.
 * - `done`: a request is done; for `chain` with the `cursor` behind its events; `missing`: sentences about what an answer lacks; for
 *   `cancel` of a run or a group, `chains`: the ids of chains that were asked to end, as many as fit in the answer, and `counts`: how many
 *   were asked to end, had not begun and will not, and were over.
 * - `refused`: a request was not done; `code` is 400–503.
 * - `welcome`: a connection is made; `again`: it is not the first one.
 *
 * @typedef {{kind: "events", id: string, events: StreamEvent[]}
 *   | {kind: "rows", id: string, rows: Record<string, any>[], total: number | null, next: string | null, changed: boolean, anew: boolean, missing?: string[]}
 *   | {kind: "done", id: string, cursor: string | null, missing: string[], chains: string[], counts?: {ending: number, notBegun: number, over: number}}
 *   | {kind: "refused", id: string | null, code: number, message: string}
 *   | {kind: "welcome", runs: RunInfo[], scopes: string[], features: string[], again: boolean}} Notice
 */

/** @typedef {{frames: Frame[], notices: Notice[]}} Output */

/** @typedef {{word: "connecting" | "connected" | "catching up" | "paused" | "reconnecting" | "replaying" | "refused", waiting: number, why: string}} State */

const FEATURES = ["parts"];
const MAX_MESSAGE = 16 << 20; // bytes; the server shortens larger events
const MAX_PARTS = 8192; // in one batch
const SILENCE = 3; // after so many heartbeats without a message, the server counts as gone, whatever was asked
const ASK = 0.5; // after so many heartbeats without a message the page asks whether the server is there, and waits as long for an answer,
const MOST_PATIENCE = 5; // or so many times as long on a line on which an answer may stand behind a large message
const ANSWER_S = 15; // for a connection, and for the first message on it
const JUMP_S = 5; // if so much time passed between two ticks, the machine slept, or the browser did nothing else
const WAKE_S = 3; // a server that is there has answered after this time
const FIRST_PAUSE_S = 0.1; // before reconnecting; it doubles each time, up to
const LONGEST_PAUSE_S = 10;
const STEADY_S = 1; // after a connection that lasted so long, the pauses begin anew
const UPDATE_S = 0.1; // a filter is changed no more often, however fast somebody scrolls
const LATE_S = 2; // events this old are history
const LULL_S = 0.3; // history is complete if nothing comes for so long
const MAX_WAITING = 20_000; // events that wait while the page is paused, and
const MAX_WAITING_CHARACTERS = 16 << 20; // of the messages that brought them; the server keeps the others

/**
 * @typedef {object} Subscription
 * @property {Filter} filter
 * @property {string} since
 * @property {string | null} cursor the place after the last event
 * @property {number | "max" | null} speed of a replay
 * @property {boolean} aside whether it reads a part of a record beside what is shown, which is no replay to see
 * @property {{time: number} | null} replay where a replay begins
 * @property {string | undefined} ofRun a run of the record that is meant, if the server has several
 * @property {boolean} open whether the server was asked on this connection
 * @property {boolean} confirmed whether the server has answered that
 * @property {boolean} late whether what comes is history
 * @property {number | null} movedAt when its latest events or the server's answer came; null: neither came on this connection
 * @property {boolean} held whether the server was told to stop, since too many events wait
 * @property {StreamEvent[]} parts of a batch that is not complete yet
 * @property {number} partsCame
 * @property {number} changedAt when the server was last told of the filter
 * @property {boolean} changed whether it is to be told again
 * @property {Losses} losses
 */

export class Session {
  /**
   * @param {object} options
   * @param {string | null} [options.token]
   * @param {() => number} options.now seconds on a clock that is never set back
   * @param {() => number} options.epoch seconds since the epoch
   * @param {() => number} options.random from 0 up to 1
   * @param {number} [options.maxWaiting] how many events wait here while the page is paused
   */
  constructor({ token = null, now, epoch, random, maxWaiting = MAX_WAITING }) {
    this.token = token;
    this.now = now;
    this.epoch = epoch;
    this.random = random;
    this.maxWaiting = maxWaiting;
    /** @type {"connecting" | "greeting" | "open" | "away" | "refused"} */
    this.phase = "connecting";
    this.why = ""; // why the server refused or the connection was lost, in a sentence
    this.refusedWith = 0; // the code with which the server refused
    this.reconnections = 0;
    /** @type {number | null} since when there is no connection; null before the first one */
    this.lostAt = null;
    /** @type {RunInfo[]} */
    this.runs = [];
    /** @type {string[]} */
    this.scopes = [];
    /** @type {string[]} */
    this.features = [];
    this.counts = { events: 0, batches: 0, gaps: 0, characters: 0 };
    /** @type {Map<string, Subscription>} */
    this.subscriptions = new Map();
    /** @type {Map<string, number>} by id: how many times the server was told to end that subscription, and has not answered yet */
    this.leaving = new Map();
    /** @type {Map<string, {query: Query, asked: boolean, anew: boolean}>} */
    this.queries = new Map();
    this.maxQueries = 8;
    /** @type {Set<string>} ids of `cancel` that are not answered yet */
    this.cancels = new Set();
    this.heartbeatS = 20;
    this.heardAt = 0;
    this.openedAt = 0;
    this.failures = 0;
    /** @type {number | null} when an attempt to connect began; null: none is made */
    this.dialedAt = null;
    /** @type {number | null} when the server must have answered the page's ping; null: it was not asked */
    this.answerBy = null;
    this.patience = 1;
    this.tickedAt = { now: now(), epoch: epoch() };
    this.paused = false;
    /** @type {{id: string, events: StreamEvent[]}[]} */
    this.waiting = [];
    this.waitingCount = 0;
    this.waitingCharacters = 0;
  }

  /** What to show in the header. @returns {State} */
  get state() {
    const why = this.why;
    if (this.phase === "refused") return { word: "refused", waiting: 0, why };
    if (this.phase !== "open") {
      const known = this.reconnections > 0 || this.failures > 0;
      return { word: known ? "reconnecting" : "connecting", waiting: this.waitingCount, why };
    }
    if (this.paused) return { word: "paused", waiting: this.waitingCount, why: "" };
    const all = [...this.subscriptions.values()];
    if (all.some((each) => each.speed !== null && !each.aside)) return { word: "replaying", waiting: 0, why: "" };
    return { word: all.some((each) => each.late) ? "catching up" : "connected", waiting: 0, why: "" };
  }

  /** For how many seconds there has been no connection; 0 if there is one, or was none yet. */
  get lostFor() {
    return this.phase === "open" || this.lostAt === null ? 0 : Math.max(this.now() - this.lostAt, 0);
  }

  /** Whether more events wait than are counted: the server keeps them. */
  get keepsWaiting() {
    return [...this.subscriptions.values()].some((each) => each.held);
  }

  // -- the connection ---------------------------------------------------------------------------------------------------

  /** An attempt to connect begins. */
  dialed() {
    this.dialedAt = this.now();
  }

  /** The WebSocket is open. @returns {Frame[]} */
  opened() {
    this.phase = "greeting";
    this.dialedAt = this.answerBy = null;
    this.heardAt = this.openedAt = this.now();
    const hello = { type: "hello", client: "page", role: "page", features: FEATURES, max_message: MAX_MESSAGE };
    return [this.token === null ? hello : { ...hello, token: this.token }];
  }

  /**
   * The WebSocket is closed, or could not be opened.
   * @param {number} code
   * @param {string} [reason]
   * @returns {number | null} seconds until the next attempt; null: the server does not want this page back
   */
  closed(code, reason = "") {
    const lasted = this.phase === "open" ? this.now() - this.openedAt : 0;
    if (this.phase === "open") {
      this.reconnections += 1;
      // If the server had stopped answering, it was last there at its last message.
      this.lostAt = this.answerBy === null ? this.now() : this.heardAt;
      if (this.isSilent) this.patience = Math.min(this.patience * 2, MOST_PATIENCE);
    }
    this.dialedAt = this.answerBy = null;
    this.cancels.clear();
    this.leaving.clear();
    if (reason || this.phase !== "refused") this.why = reason || whyOf(code);
    for (const each of this.subscriptions.values()) {
      each.open = each.held = false;
      each.movedAt = null;
      each.parts = [];
      each.partsCame = 0;
    }
    for (const each of this.queries.values()) {
      each.anew ||= each.asked;
      each.asked = false;
    }
    // 4003: the token expired, and a page has no other one.
    if (this.phase === "refused" || (code >= 4500 && code < 5000) || code === 4003) {
      this.phase = "refused";
      this.refusedWith ||= code;
      return null;
    }
    this.phase = "away";
    this.failures = lasted >= STEADY_S ? 1 : this.failures + 1;
    const longest = Math.min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** Math.min(this.failures - 1, 16));
    return longest * (0.5 + this.random() / 2);
  }

  /** Whether the server has been silent for so long that it counts as gone; the caller then closes the WebSocket. */
  get isSilent() {
    const now = this.now();
    if (this.phase === "open") return now - this.heardAt > SILENCE * this.heartbeatS || (this.answerBy !== null && now > this.answerBy);
    if (this.phase === "greeting") return now - this.heardAt > ANSWER_S;
    return this.dialedAt !== null && now - this.dialedAt > ANSWER_S;
  }

  /**
   * Whether time has jumped since this or `tick` was last called, since the machine slept or the browser was stopped. What came meanwhile may
   * still wait to be read, so the server is then asked whether it is there, and has a moment to answer.
   * @returns {{jumped: boolean, frames: Frame[]}}
   */
  watchClock() {
    const [now, epoch] = [this.now(), this.epoch()];
    const passed = Math.max(now - this.tickedAt.now, epoch - this.tickedAt.epoch); // the clock that is never set back may stand still
    this.tickedAt = { now, epoch };
    if (passed < JUMP_S) return { jumped: false, frames: [] };
    if (this.dialedAt !== null) this.dialedAt = now;
    if (this.phase === "greeting") this.heardAt = Math.max(this.heardAt, now - ANSWER_S + WAKE_S);
    if (this.phase !== "open") return { jumped: true, frames: [] };
    this.heardAt = Math.max(this.heardAt, now - SILENCE * this.heartbeatS + WAKE_S);
    this.answerBy = now + Math.min(WAKE_S, ASK * this.heartbeatS);
    return { jumped: true, frames: [{ type: "ping" }] };
  }

  /** Another token, such as that of a new link. The caller then connects anew. @param {string | null} token */
  useToken(token) {
    this.token = token;
    if (this.phase === "refused") this.phase = "away";
    this.refusedWith = this.failures = 0;
    this.why = "";
  }

  /** Time passes: what is due now. Call it a few times a second. @returns {Frame[]} */
  tick() {
    if (this.phase !== "open") return [];
    const now = this.now();
    if (this.answerBy === null && now - this.heardAt > ASK * this.heartbeatS) {
      this.answerBy = now + this.patience * ASK * this.heartbeatS;
      return [{ type: "ping" }, ...this.due()];
    }
    for (const each of this.subscriptions.values()) {
      if (each.late && each.movedAt !== null && now - each.movedAt > LULL_S) each.late = false;
    }
    return this.due();
  }

  // -- what the page asks for ----------------------------------------------------------------------------------------------

  /**
   * Watch events. Each `id` is one subscription, for as long as it is not ended, whatever happens to the connection.
   * @param {string} id
   * @param {Filter} filter
   * @param {{since?: string, speed?: number | "max" | null, ofRun?: string | undefined}} [options] `since` is `live`, `start` or a cursor;
   *   `ofRun`: a run of the record that is meant, if the server has several; without it, the first one of the filter
   * @returns {Frame[]}
   */
  subscribe(id, filter, { since = "live", speed = null, ofRun } = {}) {
    return this.begin(id, filter, since, speed, null, ofRun);
  }

  /**
   * Replay a record from a time on. It begins with snapshots of the chains that are open then; so does a change of its filter.
   * @param {string} id of a subscription; another place of the record has another id, so that nothing of the old one comes under it
   * @param {Filter} filter
   * @param {{time: number, speed: number | "max", ofRun?: string, aside?: boolean}} options `time` in seconds since the epoch; `ofRun` as for `subscribe`;
   *   `aside`: it is not what the page shows
   * @returns {Frame[]}
   */
  replay(id, filter, { time, speed, ofRun, aside = false }) {
    return this.begin(id, filter, "start", speed, { time }, ofRun, aside);
  }

  /**
   * @param {string} id
   * @param {Filter} filter
   * @param {string} since
   * @param {number | "max" | null} speed
   * @param {Subscription["replay"]} replay
   * @param {string | undefined} ofRun
   * @param {boolean} [aside]
   * @returns {Frame[]}
   */
  begin(id, filter, since, speed, replay, ofRun, aside = false) {
    this.subscriptions.set(id, {
      filter,
      since,
      speed,
      replay,
      ofRun,
      aside,
      cursor: null,
      open: false,
      confirmed: false,
      late: true,
      movedAt: null,
      held: false,
      parts: [],
      partsCame: 0,
      changedAt: -Infinity,
      changed: false,
      losses: new Losses(since),
    });
    return this.due();
  }

  /**
   * Watch other events. Chains that come into view begin with snapshots.
   * @param {string} id
   * @param {Filter} filter
   * @returns {Frame[]}
   */
  update(id, filter) {
    const found = this.subscriptions.get(id);
    if (found === undefined || sameFilter(found.filter, filter)) return [];
    found.filter = filter;
    found.changed = true;
    return this.due();
  }

  /** @param {string} id @returns {Frame[]} */
  unsubscribe(id) {
    const found = this.subscriptions.get(id);
    this.subscriptions.delete(id);
    this.dropWaiting(id);
    return found?.open && !found.held && this.phase === "open" ? [this.leave(id)] : [];
  }

  /**
   * Ask. Answers come as `rows` and then `done`, or as `refused`; with `watch`, rows come until `stop`.
   * @param {string} id
   * @param {Query} query
   * @returns {Frame[]}
   */
  ask(id, query) {
    this.queries.set(id, { query, asked: false, anew: false });
    return this.due();
  }

  /** Abandon a query. @param {string} id @returns {Frame[]} */
  stop(id) {
    const found = this.queries.get(id);
    this.queries.delete(id);
    return found?.asked && this.phase === "open" ? [{ type: "stop", id }, ...this.due()] : this.due();
  }

  /**
   * Cancel a run, a chain or a group of it; `done` or `refused` answers. This is not repeated if the connection is lost.
   * @param {string} id
   * @param {string} runId
   * @param {{chain?: string, group?: string}} [part]
   * @returns {Frame[]}
   */
  cancel(id, runId, { chain, group } = {}) {
    if (this.phase !== "open") return [];
    this.cancels.add(id);
    const of = { ...(chain === undefined ? {} : { chain_id: chain }), ...(group === undefined ? {} : { group_id: group }) };
    return [{ type: "cancel", id, run_id: runId, ...of }];
  }

  /**
   * Go on with a replay at another place.
   * @param {string} id
   * @param {{cursor: string} | {time: number}} place time in seconds since the epoch
   * @returns {Frame[]}
   */
  seek(id, place) {
    const found = this.subscriptions.get(id);
    if (found === undefined || !found.open || this.phase !== "open") return [];
    found.late = true;
    found.movedAt = null;
    found.losses.fence.clear(); // what came before may come again
    return [{ type: "seek", id, ...place }];
  }

  /**
   * Go on with a replay at another speed; 0 pauses it.
   * @param {string} id
   * @param {number | "max"} speed
   * @returns {Frame[]}
   */
  speed(id, speed) {
    const found = this.subscriptions.get(id);
    if (found === undefined || found.speed === null) return [];
    found.speed = speed;
    return found.open && this.phase === "open" ? [{ type: "speed", id, speed }] : [];
  }

  /** Hold events back, so that what is on screen stays. The oldest wait here, the others at the server. */
  pause() {
    this.paused = true;
  }

  /** Let events come again: those that waited first. @returns {Output} */
  resume() {
    this.paused = false;
    const notices = this.waiting.map(({ id, events }) => this.eventsNotice(id, events));
    this.waiting = [];
    this.waitingCount = this.waitingCharacters = 0;
    for (const each of this.subscriptions.values()) {
      if (each.held) {
        each.held = each.open = false;
        each.late = true;
        each.movedAt = null;
      }
    }
    return { frames: this.due(), notices };
  }

  // -- what the server says --------------------------------------------------------------------------------------------------

  /**
   * Take a message. What is not a frame, or of a type that this page does not know, is passed over.
   * @param {string} message
   * @returns {Output}
   */
  receive(message) {
    this.heardAt = this.now();
    if (this.answerBy !== null && this.phase === "open") {
      this.answerBy = null;
      this.patience = 1;
    }
    this.counts.characters += message.length;
    const frame = frameOf(message);
    if (frame === null) return { frames: [], notices: [] };
    switch (frame.type) {
      case "welcome":
        return this.welcomed(frame);
      case "subscribed":
        return this.subscribed(frame);
      case "batch":
        return this.batch(frame, message.length);
      case "rows":
        return this.rowsCame(frame);
      case "done":
        return this.done(frame);
      case "error":
        return this.failed(frame);
      case "ping":
        return { frames: [{ type: "pong" }], notices: [] };
      default:
        return { frames: [], notices: [] };
    }
  }

  /** @param {Frame} frame @returns {Output} */
  welcomed(frame) {
    const again = this.reconnections > 0;
    this.phase = "open";
    this.why = "";
    this.lostAt = null;
    this.refusedWith = 0;
    this.runs = frame.runs ?? [];
    this.scopes = frame.scopes ?? [];
    this.features = frame.features ?? [];
    this.heartbeatS = frame.heartbeat_s ?? this.heartbeatS;
    const queries = frame.limits?.queries;
    if (Number.isSafeInteger(queries) && queries > 0) this.maxQueries = queries;
    for (const each of this.subscriptions.values()) {
      each.late = true;
      each.losses.welcomed(this.runs);
    }
    const { runs, scopes, features } = this;
    return { frames: this.due(), notices: [{ kind: "welcome", runs, scopes, features, again }] };
  }

  /** @param {Frame} frame @returns {Output} */
  subscribed(frame) {
    const found = this.ofFrame(frame.id);
    if (found === undefined) return { frames: [], notices: [] };
    found.confirmed = true;
    found.parts = []; // of a batch that this answer put an end to
    found.partsCame = 0;
    found.movedAt ??= this.now();
    if (typeof frame.cursor === "string") found.cursor = frame.cursor;
    const gaps = found.losses.subscribed(frame, this.epoch());
    return { frames: [], notices: gaps.length ? this.given(frame.id, gaps) : [] };
  }

  /** @param {Frame} frame @param {number} length of the message in characters @returns {Output} */
  batch(frame, length) {
    const found = this.ofFrame(frame.id);
    if (found === undefined) return { frames: [], notices: [] };
    const { part = 1, parts = 1 } = frame;
    let events = /** @type {StreamEvent[]} */ (frame.events ?? []);
    if (parts > 1 || found.partsCame) {
      if (part !== found.partsCame + 1 || part > parts || parts > MAX_PARTS) return this.mistaken(frame.id, found);
      found.parts.push(...events);
      found.partsCame += 1;
      if (found.partsCame < parts) return { frames: [], notices: [] };
      events = found.parts;
      found.parts = [];
      found.partsCame = 0;
    }
    found.cursor = frame.cursor ?? null;
    this.counts.batches += 1;
    this.counts.events += events.length;
    found.movedAt = events.length ? this.now() : (found.movedAt ?? this.now());
    const latest = events.at(-1)?.timestamp;
    if (typeof latest === "number") found.late = this.epoch() - latest > LATE_S && found.late;
    const whole = found.losses.arrived(events, this.epoch());
    this.counts.gaps += whole.filter((event) => event.event_type === "gap").length;
    const notices = this.given(frame.id, whole);
    if (this.paused) this.waitingCharacters += length;
    const full = this.waitingCount > this.maxWaiting || this.waitingCharacters > MAX_WAITING_CHARACTERS;
    const held = this.paused && full && !found.held;
    if (held) found.held = true;
    return { frames: held ? [this.leave(frame.id)] : [], notices };
  }

  /**
   * A part of a batch is missing: begin this subscription again from its cursor.
   * @param {string} id
   * @param {Subscription} found
   * @returns {Output}
   */
  mistaken(id, found) {
    found.parts = [];
    found.partsCame = 0;
    found.open = false;
    return { frames: [this.leave(id), ...this.due()], notices: [] };
  }

  /** Tell the server to end a subscription. @param {string} id @returns {Frame} */
  leave(id) {
    this.leaving.set(id, (this.leaving.get(id) ?? 0) + 1);
    return { type: "unsubscribe", id };
  }

  /** Note that the server has answered that. @param {string} id */
  left(id) {
    const more = (this.leaving.get(id) ?? 0) - 1;
    if (more > 0) this.leaving.set(id, more);
    else this.leaving.delete(id);
  }

  /** The subscription that a frame is about; undefined if it is about an earlier one with this id. @param {string} id */
  ofFrame(id) {
    const found = this.subscriptions.get(id);
    return found?.open && (found.held || !this.leaving.has(id)) ? found : undefined;
  }

  /** @param {Frame} frame @returns {Output} */
  rowsCame(frame) {
    const found = this.queries.get(frame.id);
    if (found === undefined || !found.asked) return { frames: [], notices: [] };
    const anew = found.anew;
    found.anew = false;
    const { rows = [], total = null, next = null, changed = false, missing = [] } = frame;
    return { frames: [], notices: [{ kind: "rows", id: frame.id, rows, total, next, changed, anew, missing }] };
  }

  /** @param {Frame} frame @returns {Output} */
  done(frame) {
    if (typeof frame.id !== "string") return { frames: [], notices: [] };
    if (this.leaving.has(frame.id)) this.left(frame.id);
    const found = this.queries.get(frame.id);
    if (found?.asked === false || this.subscriptions.has(frame.id)) return { frames: [], notices: [] }; // of something older with this id
    this.queries.delete(frame.id);
    this.cancels.delete(frame.id);
    const { cursor = null, missing = [], chains = [], ending = chains.length, not_begun = 0, over = 0 } = frame;
    const counts = frame.run_id === undefined ? {} : { counts: { ending, notBegun: not_begun, over } };
    return { frames: this.due(), notices: [{ kind: "done", id: frame.id, cursor, missing, chains, ...counts }] };
  }

  /** @param {Frame} frame @returns {Output} */
  failed(frame) {
    const { code = 0, message = "", id = null } = frame;
    if (code >= 1000) {
      this.why = String(message); // a close follows
      this.refusedWith = code >= 4500 || code === 4003 ? code : 0;
      return { frames: [], notices: [] };
    }
    if (code === 404 && id !== null && this.leaving.has(id)) {
      this.left(id); // the server had ended it already
      return { frames: [], notices: [] };
    }
    const ofCancel = id !== null && this.cancels.delete(id);
    if (code === 404 && id !== null && !ofCancel && !this.queries.has(id) && !this.subscriptions.has(id)) {
      return { frames: [], notices: [] }; // it was stopped, and had ended
    }
    if (id !== null) {
      this.queries.delete(id);
      if (this.subscriptions.get(id)?.confirmed === false) this.subscriptions.delete(id); // else an update of it was refused
    }
    return { frames: this.due(), notices: [{ kind: "refused", id, code, message: String(message) }] };
  }

  // -- helpers ----------------------------------------------------------------------------------------------------------------

  /**
   * The frames that the server lacks to know what is wanted.
   * @returns {Frame[]}
   */
  due() {
    if (this.phase !== "open") return [];
    /** @type {Frame[]} */
    const frames = [];
    const now = this.now();
    for (const [id, each] of this.subscriptions) {
      if (!each.open) {
        each.open = true;
        each.confirmed = each.changed = false;
        each.parts = [];
        each.partsCame = 0;
        each.changedAt = now;
        if (each.cursor !== null && each.speed === null) each.losses.returns();
        frames.push({ type: "subscribe", id, filter: each.filter, since: each.cursor ?? each.since, ...inRecord(each, this.features) });
      } else if (each.changed && !each.held && now - each.changedAt >= UPDATE_S) {
        each.changed = false;
        each.changedAt = now;
        frames.push({ type: "update", id, filter: each.filter });
      }
    }
    let running = [...this.queries.values()].filter((each) => each.asked).length;
    for (const [id, each] of this.queries) {
      if (each.asked || running >= this.maxQueries) continue;
      each.asked = true;
      running += 1;
      frames.push({ type: "query", id, ...each.query });
    }
    return frames;
  }

  /**
   * The notice for these events; none yet if the page is paused.
   * @param {string} id
   * @param {StreamEvent[]} events
   * @returns {Notice[]}
   */
  given(id, events) {
    if (!this.paused) return events.length ? [this.eventsNotice(id, events)] : [];
    this.waiting.push({ id, events });
    this.waitingCount += events.length;
    return [];
  }

  /**
   * @param {string} id
   * @param {StreamEvent[]} events
   * @returns {Notice}
   */
  eventsNotice(id, events) {
    return { kind: "events", id, events };
  }

  /** @param {string} id */
  dropWaiting(id) {
    this.waiting = this.waiting.filter((each) => each.id !== id);
    this.waitingCount = this.waiting.reduce((sum, each) => sum + each.events.length, 0);
  }
}

/**
 * The fields of a `subscribe` that are about a record: the speed of a replay, and where it begins unless there is a cursor to continue
 * from; which of several records is meant; and that open chains begin with snapshots.
 * @param {Subscription} subscription
 * @param {string[]} features of the server
 */
function inRecord({ speed, replay, cursor, ofRun, since }, features) {
  return {
    ...(speed === null ? {} : { speed }),
    ...(replay === null || cursor !== null ? {} : { time: replay.time }),
    ...((replay === null && since !== "live") || !features.includes("replay_at") ? {} : { snapshots: true }),
    ...(ofRun === undefined ? {} : { of_run: ofRun }),
  };
}

/**
 * @param {Filter} one
 * @param {Filter} other
 */
function sameFilter(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** @param {number} code */
function whyOf(code) {
  if (code === 4001) return "the server is shutting down";
  if (code === 4008) return "this page was too slow for the server";
  if (code === 4012) return "the server heard nothing of this page";
  if (code === 1006) return "the connection was lost";
  return `the connection was closed (${code})`;
}
