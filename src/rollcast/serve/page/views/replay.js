// The bar of a replay: play and pause, a slider over the run's time, how fast, and the way back to now.
//
// Where a replay was begun, how fast it goes, and whether it is paused stand in the address: `at` in seconds from the run's start, `speed`, and
// `paused`.

import { html, useEffect, useKeys, useLayoutEffect, usePage, useRef, useState, useTicks } from "../ui.js";
import { spanOf } from "../past.js";
import { speedOf, SPEEDS } from "../replay.js";
import { formatRoute, parseRoute } from "../route.js";

/** @typedef {import("../route.js").Route} Route */
/** @typedef {import("../ui.js").PageContext} PageContext */

const SKIP_S = 5; // what a key goes forward or back
const REWIND_S = 10; // how far a replay of a run that goes on begins before now
const DRAG_MS = 150; // while the slider is dragged, the server is asked no more often
const SOON_MS = 1_000; // one step for *back* is enough for what follows so soon

/** What an address says of a replay. @param {Route} route @returns {Record<string, string[]>} */
export function replayQuery({ query }) {
  const { at, speed, paused } = query;
  return at === undefined ? {} : { at, ...(speed === undefined ? {} : { speed }), ...(paused === undefined ? {} : { paused }) };
}

/** The run whose time is meant: of a rollout its training. @param {import("../store.js").Store} store @param {string | null} run */
function rootRow(store, run) {
  let row = run === null ? undefined : store.runRows.get(run);
  for (let i = 0; i < 8 && row?.parent_run_id; i += 1) row = store.runRows.get(row.parent_run_id) ?? { ...row, parent_run_id: null };
  return row;
}

/** From when to when the run goes. @param {Pick<PageContext, "store" | "run">} page */
function spanNow({ store, run }) {
  const row = rootRow(store, run);
  if (row === undefined) return null;
  const children = [...store.runRows.values()].filter((each) => each.parent_run_id === row.run_id);
  const chains = [row, ...children].flatMap((each) => [...(store.chainRows.get(each.run_id)?.values() ?? [])]);
  return spanOf(row, [...children, ...chains], Date.now() / 1000);
}

/**
 * Show the moment that the address names, as soon as it is known when the run began.
 * @param {{replay: import("../replay.js").Replay, store: import("../store.js").Store, socket: import("../socket.js").Socket, route: Route, run: string | null}} props
 */
export function useReplay({ replay, store, socket, route, run }) {
  const at = route.query.at?.[0];
  const speed = speedOf(route.query.speed?.[0]);
  const playing = route.query.paused === undefined;
  const row = rootRow(store, run);
  const start = row?.started_at;
  // Not later than what is drawn: a key or a press that comes in between would be undone.
  useLayoutEffect(() => {
    const here = parseRoute(location.hash).query; // the address may have changed since this was drawn
    const place = here.at?.[0];
    if (place === undefined) {
      replay.leave();
    } else if (row !== undefined && typeof start === "number") {
      if (socket.session.paused) socket.resume();
      const seconds = Number(place);
      const from = Number.isFinite(seconds) ? Math.max(seconds, 0) : 0;
      replay.show({ runId: row.run_id, start, at: from, speed: speedOf(here.speed?.[0]), playing: here.paused === undefined });
    }
  }, [at, speed, playing, row?.run_id, start]);
}

/** The address of a replay of what is shown, or of what happens now if it is a replay; null if there is none. @param {PageContext} page */
function replayHref(page) {
  const { route, run, replay, socket } = page;
  const { at, speed, paused, ...query } = route.query;
  if (replay.active || at !== undefined) return formatRoute({ ...route, run, query });
  const features = socket.session.features;
  const span = route.view === "runs" || !features.includes("replay_at") || !features.includes("record") ? null : spanNow(page);
  if (span === null) return null;
  const place = span.goesOn ? Math.max(span.end - span.start - REWIND_S, 0) : 0;
  return formatRoute({ ...route, run, query: { ...query, at: [place.toFixed(1)], speed: ["1"] } });
}

/** What leads to a replay, and back to now. */
export function ReplayLink() {
  const page = usePage();
  const href = replayHref(page);
  useKeys({ v: () => href !== null && (location.hash = href) });
  if (href === null) return null;
  return html`<a class="small-button replay-link" href=${href} title="v" aria-label=${page.replay.active ? "Back to now" : undefined}>${page.replay.active ? html`<span class="wide-only">Back to now</span><span class="narrow-only" aria-hidden="true">Now</span>` : "Replay"}</a>`;
}

/** Seconds as `1:05.3`. @param {number} seconds */
export function shownTime(seconds) {
  const tenths = Math.max(Math.round(seconds * 10), 0);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  if (minutes < 60) return `${minutes}:${rest}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

/** How far the replay is, in seconds from the start. @param {PageContext} page */
function placeOf({ replay, store, run }) {
  const span = spanNow({ store, run });
  const most = span === null ? Infinity : span.end - replay.start;
  return Math.min(Math.max(replay.clock - replay.start, 0), most);
}

/** The recorded time, for the header. @param {PageContext} page */
export function replayTime(page) {
  return shownTime(placeOf(page));
}

/** Pause, or go on; from the beginning if it is at the end. @param {PageContext} page */
export function toggleReplay(page) {
  const { replay, replaced } = page;
  const { query } = parseRoute(location.hash); // what is drawn may be older
  const span = spanNow(page);
  const place = placeOf(page);
  if (replay.playing) {
    replay.pause();
    replay.asked = Number(place.toFixed(1));
    replaced({ query: { ...query, at: [place.toFixed(1)], paused: ["1"] } });
  } else if (span !== null && !span.goesOn && place >= span.end - span.start - 0.05) {
    seek(page, 0, true);
  } else {
    replay.play();
    replaced({ query: playingOn(query) });
  }
}

/** @param {Route["query"]} query */
function playingOn({ paused, ...query }) {
  return query;
}

/** @param {PageContext} page @param {number} at seconds from the start @param {boolean} [playing] */
function seek(page, at, playing = page.replay.playing) {
  const { replay, replaced, store, run } = page;
  const route = parseRoute(location.hash);
  const span = spanNow({ store, run });
  const place = Number(Math.min(Math.max(at, 0), span === null ? Infinity : span.end - span.start).toFixed(1));
  replay.show({ runId: replay.runId, start: replay.start, at: place, speed: replay.speed, playing });
  if (playing && !replay.playing) replay.play();
  const soon = performance.now() - soughtAt < SOON_MS;
  soughtAt = performance.now();
  const query = { ...(playing ? playingOn(route.query) : route.query), at: [String(place)] };
  if (soon) replaced({ query });
  else location.hash = formatRoute({ ...route, run, query }); // `go` would keep `paused`
}
let soughtAt = -Infinity;

export function ReplayBar() {
  const page = usePage();
  const { replay, replaced } = page;
  useTicks(100, replay.playing);
  const [dragged, drag] = useState(/** @type {number | null} */ (null));
  const later = useRef(/** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined));
  const span = spanNow(page);
  const place = placeOf(page);
  const length = Math.max(span === null ? place : span.end - span.start, 0.1);
  const ended = span !== null && !span.goesOn && place >= length - 0.05;
  useLayoutEffect(() => {
    if (ended && replay.playing && dragged === null) toggleReplay(page);
  }, [ended]);
  useEffect(() => () => clearTimeout(later.current), []);
  useKeys({
    p: () => toggleReplay(page),
    "[": () => seek(page, placeOf(page) - SKIP_S),
    "]": () => seek(page, placeOf(page) + SKIP_S),
  });
  const moved = (/** @type {Event} */ event) => {
    const at = Number(/** @type {HTMLInputElement} */ (event.target).value);
    drag(at);
    clearTimeout(later.current);
    later.current = setTimeout(() => replay.show({ runId: replay.runId, start: replay.start, at: Number(at.toFixed(1)), speed: replay.speed, playing: replay.playing }), DRAG_MS);
  };
  const let_go = (/** @type {Event} */ event) => {
    clearTimeout(later.current);
    drag(null);
    seek(page, Number(/** @type {HTMLInputElement} */ (event.target).value));
  };
  const choose = (/** @type {import("../replay.js").Speed} */ speed) => {
    replay.setSpeed(speed);
    replaced({ query: { ...parseRoute(location.hash).query, speed: [String(speed)] } });
  };
  const shown = dragged ?? place;
  return html`<section class="replay-bar" aria-label="Replay">
    <button class="small-button" onClick=${() => toggleReplay(page)} aria-keyshortcuts="p">${replay.playing ? "❚❚ Pause" : ended ? "↻ Again" : "▶ Play"}</button>
    <input type="range" min="0" max=${length.toFixed(1)} step="0.1" value=${shown.toFixed(1)} aria-label="Time of the run"
      aria-valuetext=${`${shownTime(shown)} of ${shownTime(length)}`} onInput=${moved} onChange=${let_go} />
    <output class="mono">${shownTime(shown)} / ${shownTime(length)}</output>
    <span class="speeds" role="group" aria-label="Speed">${SPEEDS.map(
      (speed) => html`<button key=${speed} class="chip" aria-pressed=${replay.speed === speed ? "true" : "false"} onClick=${() => choose(speed)}>${speed === "max" ? "max" : `${speed}×`}</button>`,
    )}</span>
  </section>`;
}
