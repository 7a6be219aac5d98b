// The page's side of `rollcast.v1` as a state machine without I/O: frames come in, frames and notices go out.
//
//   opened() ─▶ hello          receive(text) ─▶ frames to send, notices          tick() ─▶ frames that are due
//   closed(code) ─▶ seconds until the next attempt, or null if the server does not want this page back
//
// Over any number of connections it resumes each subscription from its cursor and asks unanswered queries again. What the server no longer
// has comes as `gap` events. A caller sends the returned frames in order, as JSON.

import { Losses } from "./losses.js";

/** @typedef {import("./chain_view.js").StreamEvent} StreamEvent */
/** @typedef {{runs?: string[], chains?: string[], groups?: string[], types?: string[]}} Filter null or absent: all */
/** @typedef {{type: string} & Record<string, any>} Frame */
/** @typedef {{run_id: string, parent_run_id: string | null, status: string, chains: number}} RunInfo */

/**
 * @typedef {{what: "runs" | "chains" | "chain" | "steps", run?: string, chain?: string, filter?: Record<string, any>, sort?: string,
 *   after?: string, limit?: number, watch?: boolean, recorded?: boolean}} Query
 */

/**
 * What the session tells its caller:
 *
 * - `events`: of a subscription, in order.
 * - `rows`: of a query; `changed` as with `watch`. `anew`: what came of this query before no longer counts, since it was asked again.
 * - `done`: a request is done; for `chain` with the `cursor` behind its events; `missing`: sentences about what an answer lacks; for
 *   `cancel`, `chains`: the ids of those that were told to end.
 * - `refused`: a request was not done; `code` is 400–503.
 * - `welcome`: a connection is made.
 *
 * @typedef {{kind: "events", id: string, events: StreamEvent[]}
 *   | {kind: "rows", id: string, rows: Record<string, any>[], total: number | null, next: string | null, changed: boolean, anew: boolean}
 *   | {kind: "done", id: string, cursor: string | null, missing: string[], chains: string[]}
 *   | {kind: "refused", id: string | null, code: number, message: string}
 *   | {kind: "welcome", runs: RunInfo[], scopes: string[], features: string[]}} Notice
 */

/** @typedef {{frames: Frame[], notices: Notice[]}} Output */

/** @typedef {{word: "connecting" | "connected" | "catching up" | "paused" | "reconnecting" | "replaying" | "refused", waiting: number, why: string}} State */

const FEATURES = ["parts"];
const MAX_MESSAGE = 16 << 20; // bytes; the server shortens larger events
const MAX_PARTS = 8192; // in one batch
const SILENCE = 3; // after so many heartbeats without a message, the server counts as gone
const FIRST_PAUSE_S = 0.1; // before reconnecting; it doubles each time, up to
const LONGEST_PAUSE_S = 10;
const STEADY_S = 1; // after a connection that lasted so long, the pauses begin anew
const UPDATE_S = 0.1; // a filter is changed no more often, however fast somebody scrolls
const LATE_S = 2; // events this old are history
const LULL_S = 0.3; // history has been told if nothing comes for so long
const MAX_WAITING = 20_000; // events that wait while the page is paused; the server keeps the others

/**
 * @typedef {object} Subscription
 * @property {Filter} filter
 * @property {string} since
 * @property {string | null} cursor the place after the last event
 * @property {number | "max" | null} speed of a replay
 * @property {{time: number} | null} replay where a replay begins
 * @property {string | undefined} ofRun a run of the record that is meant, if the server has several
 * @property {boolean} open whether the server was asked on this connection
 * @property {boolean} confirmed whether the server has answered that
 * @property {boolean} late whether what comes is history
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
   */
  constructor({ token = null, now, epoch, random }) {
    this.token = token;
    this.now = now;
    this.epoch = epoch;
    this.random = random;
    /** @type {"connecting" | "greeting" | "open" | "away" | "refused"} */
    this.phase = "connecting";
    this.why = ""; // why the server refused or the connection was lost, in a sentence
    this.reconnections = 0;
    /** @type {RunInfo[]} */
    this.runs = [];
    /** @type {string[]} */
    this.scopes = [];
    /** @type {string[]} */
    this.features = [];
    this.counts = { events: 0, batches: 0, gaps: 0, characters: 0 };
    /** @type {Map<string, Subscription>} */
    this.subscriptions = new Map();
    /** @type {Map<string, {query: Query, asked: boolean, anew: boolean}>} */
    this.queries = new Map();
    this.maxQueries = 8;
    this.heartbeatS = 20;
    this.heardAt = 0;
    this.openedAt = 0;
    this.failures = 0;
    this.paused = false;
    /** @type {{id: string, events: StreamEvent[]}[]} */
    this.waiting = [];
    this.waitingCount = 0;
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
    if (all.some((each) => each.speed !== null)) return { word: "replaying", waiting: 0, why: "" };
    return { word: all.some((each) => each.late) ? "catching up" : "connected", waiting: 0, why: "" };
  }

  // -- the connection ---------------------------------------------------------------------------------------------------

  /** The WebSocket is open. @returns {Frame[]} */
  opened() {
    this.phase = "greeting";
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
    if (this.phase === "open") this.reconnections += 1;
    if (reason || this.phase !== "refused") this.why = reason || whyOf(code);
    for (const each of this.subscriptions.values()) {
      each.open = each.held = false;
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
      return null;
    }
    this.phase = "away";
    this.failures = lasted >= STEADY_S ? 1 : this.failures + 1;
    const longest = Math.min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** Math.min(this.failures - 1, 16));
    return longest * (0.5 + this.random() / 2);
  }

  /** Whether the server has been silent for so long that it counts as gone; the caller then closes the WebSocket. */
  get isSilent() {
    const limit = this.phase === "open" ? SILENCE * this.heartbeatS : SILENCE * 5;
    return (this.phase === "open" || this.phase === "greeting") && this.now() - this.heardAt > limit;
  }

  /** Time passes: what is due now. Call it a few times a second. @returns {Frame[]} */
  tick() {
    if (this.phase !== "open") return [];
    const now = this.now();
    for (const each of this.subscriptions.values()) {
      if (each.late && each.open && now - this.heardAt > LULL_S && now - this.openedAt > LULL_S) each.late = false;
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
   * @param {{time: number, speed: number | "max", ofRun?: string}} options `time` in seconds since the epoch; `ofRun` as for `subscribe`
   * @returns {Frame[]}
   */
  replay(id, filter, { time, speed, ofRun }) {
    return this.begin(id, filter, "start", speed, { time }, ofRun);
  }

  /**
   * @param {string} id
   * @param {Filter} filter
   * @param {string} since
   * @param {number | "max" | null} speed
   * @param {Subscription["replay"]} replay
   * @param {string | undefined} ofRun
   * @returns {Frame[]}
   */
  begin(id, filter, since, speed, replay, ofRun) {
    this.subscriptions.set(id, {
      filter,
      since,
      speed,
      replay,
      ofRun,
      cursor: null,
      open: false,
      confirmed: false,
      late: true,
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
    return found?.open && !found.held && this.phase === "open" ? [{ type: "unsubscribe", id }] : [];
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
    const notices = this.waiting.map(({ id, events }) => this.told(id, events));
    this.waiting = [];
    this.waitingCount = 0;
    for (const each of this.subscriptions.values()) {
      if (each.held) {
        each.held = each.open = false;
        each.late = true;
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
    this.counts.characters += message.length;
    /** @type {Frame} */
    let frame;
    try {
      frame = JSON.parse(message);
    } catch {
      return { frames: [], notices: [] };
    }
    if (typeof frame !== "object" || frame === null) return { frames: [], notices: [] };
    switch (frame.type) {
      case "welcome":
        return this.welcomed(frame);
      case "subscribed":
        return this.subscribed(frame);
      case "batch":
        return this.batch(frame);
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
    this.phase = "open";
    this.why = "";
    this.runs = frame.runs ?? [];
    this.scopes = frame.scopes ?? [];
    this.features = frame.features ?? [];
    this.heartbeatS = frame.heartbeat_s ?? this.heartbeatS;
    this.maxQueries = frame.limits?.queries ?? this.maxQueries;
    for (const each of this.subscriptions.values()) {
      each.late = true;
      each.losses.welcomed(this.runs);
    }
    const { runs, scopes, features } = this;
    return { frames: this.due(), notices: [{ kind: "welcome", runs, scopes, features }] };
  }

  /** @param {Frame} frame @returns {Output} */
  subscribed(frame) {
    const found = this.subscriptions.get(frame.id);
    if (found === undefined || !found.open) return { frames: [], notices: [] };
    found.confirmed = true;
    found.parts = []; // of a batch that this answer put an end to
    found.partsCame = 0;
    if (typeof frame.cursor === "string") found.cursor = frame.cursor;
    const gaps = found.losses.subscribed(frame, this.epoch());
    return { frames: [], notices: gaps.length ? this.given(frame.id, gaps) : [] };
  }

  /** @param {Frame} frame @returns {Output} */
  batch(frame) {
    const found = this.subscriptions.get(frame.id);
    if (found === undefined || !found.open) return { frames: [], notices: [] };
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
    found.cursor = frame.cursor;
    this.counts.batches += 1;
    this.counts.events += events.length;
    const latest = events.at(-1)?.timestamp;
    if (typeof latest === "number") found.late = this.epoch() - latest > LATE_S && found.late;
    const whole = found.losses.arrived(events, this.epoch());
    this.counts.gaps += whole.filter((event) => event.event_type === "gap").length;
    const notices = this.given(frame.id, whole);
    const held = this.paused && this.waitingCount > MAX_WAITING && !found.held;
    if (held) found.held = true;
    return { frames: held ? [{ type: "unsubscribe", id: frame.id }] : [], notices };
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
    return { frames: [{ type: "unsubscribe", id }, ...this.due()], notices: [] };
  }

  /** @param {Frame} frame @returns {Output} */
  rowsCame(frame) {
    const found = this.queries.get(frame.id);
    if (found === undefined || !found.asked) return { frames: [], notices: [] };
    const anew = found.anew;
    found.anew = false;
    const { rows = [], total = null, next = null, changed = false } = frame;
    return { frames: [], notices: [{ kind: "rows", id: frame.id, rows, total, next, changed, anew }] };
  }

  /** @param {Frame} frame @returns {Output} */
  done(frame) {
    if (typeof frame.id !== "string") return { frames: [], notices: [] };
    const found = this.queries.get(frame.id);
    if (found?.asked === false || this.subscriptions.has(frame.id)) return { frames: [], notices: [] }; // of something older with this id
    this.queries.delete(frame.id);
    const { cursor = null, missing = [], chains = [] } = frame;
    return { frames: this.due(), notices: [{ kind: "done", id: frame.id, cursor, missing, chains }] };
  }

  /** @param {Frame} frame @returns {Output} */
  failed(frame) {
    const { code = 0, message = "", id = null } = frame;
    if (code >= 1000) {
      this.why = String(message); // a close follows
      return { frames: [], notices: [] };
    }
    if (code === 404 && id !== null && !this.queries.has(id) && !this.subscriptions.has(id)) {
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
        each.changedAt = now;
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
   * Events for the caller, or for later if it is paused.
   * @param {string} id
   * @param {StreamEvent[]} events
   * @returns {Notice[]}
   */
  given(id, events) {
    if (!this.paused) return events.length ? [this.told(id, events)] : [];
    this.waiting.push({ id, events });
    this.waitingCount += events.length;
    return [];
  }

  /**
   * @param {string} id
   * @param {StreamEvent[]} events
   * @returns {Notice}
   */
  told(id, events) {
    return { kind: "events", id, events };
  }

  /** @param {string} id */
  dropWaiting(id) {
    this.waiting = this.waiting.filter((each) => each.id !== id);
    this.waitingCount = this.waiting.reduce((sum, each) => sum + each.events.length, 0);
  }
}

/**
 * What a `subscribe` says of a record: the speed of a replay, and where it begins unless it has a cursor to go on from; which record of
 * several is meant; and that chains that are open there begin with snapshots.
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
