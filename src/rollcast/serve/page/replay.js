// A replay of a recorded run: its position, its speed, and the requests for it. Without a DOM.
//
//   address ─show─▶ Replay ─replay─▶ feed, which fills the store with the replayed events, beginning with snapshots
//
// The store's `moment` is the time of the latest replayed event; `clock` advances from there until the next one. If that comes a
// little late, the clock was ahead: it then waits, and does not go back.

/** @typedef {import("./feed.js").Feed} Feed */
/** @typedef {import("./store.js").Store} Store */
/** @typedef {number | "max"} Speed */

export const SPEEDS = /** @type {Speed[]} */ ([1, 4, 16, "max"]);
const LONGEST_PAUSE_S = 10; // the server waits no longer for the next event
const LATE_S = 2; // an event that comes later than that sets the clock back

/**
 * The speed that an address names; 1 if it names none.
 * @param {string | undefined} text
 * @returns {Speed}
 */
export function speedOf(text) {
  const speed = text === "max" ? "max" : Number(text);
  return SPEEDS.includes(speed) ? speed : 1;
}

export class Replay {
  /**
   * @param {Feed} feed
   * @param {Store} store
   * @param {() => number} now seconds on a clock that is never set back
   */
  constructor(feed, store, now) {
    this.feed = feed;
    this.store = store;
    this.now = now;
    this.active = false;
    this.playing = false;
    /** @type {Speed} */
    this.speed = 1;
    this.runId = "";
    this.start = 0; // of the run, in seconds since the epoch
    /** @type {number | null} the place that was asked for last, in seconds from the start */
    this.asked = null;
    this.seen = 0; // the recorded time, in seconds since the epoch,
    this.seenAt = 0; // at this time on the clock of `now`
    /** @type {number | null} the store's moment then */
    this.moment = null;
    this.furthest = 0; // what `clock` told last
  }

  /**
   * Show a place of a run, unless it is shown already.
   * @param {{runId: string, start: number, at: number, speed: Speed, playing?: boolean}} place `at` in seconds from the start
   */
  show({ runId, start, at, speed, playing = true }) {
    const stops = this.playing && !playing; // then `at` is the moment that is shown, and not where it began
    if (this.active && this.runId === runId && this.asked === at && this.start === start && !stops) {
      if (speed !== this.speed) this.setSpeed(speed);
      if (playing) this.play();
      return;
    }
    Object.assign(this, { active: true, runId, start, asked: at, speed, playing });
    this.seen = this.moment = this.furthest = start + at;
    this.seenAt = this.now();
    this.feed.replay({ runId, time: start + at, speed: playing ? speed : 0 });
  }

  /** @param {Speed} speed */
  setSpeed(speed) {
    this.settle();
    this.speed = speed;
    if (this.playing) this.feed.setReplaySpeed(speed);
  }

  play() {
    if (!this.active || this.playing) return;
    this.settle();
    this.playing = true;
    this.feed.setReplaySpeed(this.speed);
  }

  pause() {
    if (!this.active || !this.playing) return;
    this.settle();
    this.playing = false;
    this.feed.setReplaySpeed(0);
  }

  /** Return to what happens now. */
  leave() {
    if (!this.active) return;
    this.active = this.playing = false;
    this.asked = null;
    this.feed.endReplay();
  }

  /** Restart `clock` from its current value, before the speed changes. */
  settle() {
    this.seen = this.clock;
    this.seenAt = this.now();
  }

  /** The recorded time, in seconds since the epoch. */
  get clock() {
    const { moment } = this.store;
    if (moment !== null && moment !== this.moment) {
      this.seen = this.moment = moment;
      this.seenAt = this.now();
    }
    const speed = this.speed === "max" ? 0 : this.speed;
    const reached = this.seen + (this.playing ? Math.min(this.now() - this.seenAt, LONGEST_PAUSE_S) * speed : 0);
    const ahead = this.furthest - reached;
    if (ahead < 0 || ahead > LATE_S * (speed || 1)) this.furthest = reached;
    return this.furthest;
  }
}
