// The word in the header for the state of the page; above the view, what a person should know or do about the connection.

import { html, useAgain, useEffect, usePage, useRef, useState, useTicks } from "../ui.js";
import { adviceOn } from "../advice.js";
import { formatRoute } from "../route.js";
import { oneLine } from "../text.js";
import { runRow } from "../training.js";
import { replayTime, toggleReplay } from "./replay.js";

const SOON_S = 2; // a connection that is away for less is not counted in seconds

/** Draw again when the session has changed, and every second while there is no connection. */
function useConnection() {
  const { socket, topics } = usePage();
  const again = useAgain();
  useEffect(() => topics.listen("session", again), [topics]);
  const { state, lostFor } = socket.session;
  const away = state.word === "reconnecting" || state.word === "connecting";
  useEffect(() => {
    if (!away) return undefined;
    const timer = setInterval(again, 500);
    return () => clearInterval(timer);
  }, [away]);
  return { socket, state, lostFor };
}

/** @param {number} seconds */
function about(seconds) {
  return seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** Pause, or go on. @param {import("../socket.js").Socket} socket */
export function togglePause(socket) {
  if (socket.session.paused) socket.resume();
  else socket.pause();
}

/** The word; pressing it pauses and goes on. */
export function Status() {
  const { socket, state, lostFor } = useConnection();
  const page = usePage();
  const { store, run, replay } = page;
  const { word, waiting, why } = state;
  useTicks(250, replay.active);
  const paused = replay.active ? !replay.playing : socket.session.paused;
  const running = runRow(store, run)?.status === "running";
  const label = { connecting: "Connecting", connected: running ? "Live" : "Connected", "catching up": "Catching up", paused: "Paused", reconnecting: "Reconnecting", replaying: "Replaying", refused: "Refused" }[word];
  const more = socket.session.keepsWaiting ? "more than " : "";
  const detail = word === "paused" && waiting > 0 ? ` (${more}${waiting.toLocaleString("en")} waiting)` : word === "reconnecting" && lostFor >= SOON_S ? ` (${about(lostFor)})` : word === "replaying" ? ` ${replayTime(page)}` : "";
  const toggle = () => (replay.active ? toggleReplay(page) : togglePause(socket));
  return html`<button class="status" data-word=${word} title=${oneLine(why, 300) || (paused ? "Go on (p)" : "Pause (p)")} aria-pressed=${paused ? "true" : "false"}
    onClick=${toggle}><i></i><span>${label}${detail}</span></button>`;
}

/** Why there is no connection and what to do, which runs are gone, and what answers lack. */
export function Trouble() {
  const { socket, state, lostFor } = useConnection();
  const { feed } = usePage();
  if (state.word === "refused") return html`<${Refused} />`;
  if (state.word === "reconnecting") {
    const next = socket.retryAt === null ? null : socket.retryAt - socket.session.now();
    const why = oneLine(state.why, 300);
    return html`<section class="notice" aria-label="Connection"><span role="status">Not connected${why && `: ${why}`}. What is below is how it was; the page tries again by itself.</span>
      <span class="muted" aria-hidden="true">${lostFor >= SOON_S && `Since ${about(lostFor)}. `}${next === null ? "Trying now." : next >= 1 ? `Next attempt in ${about(next)}.` : ""}</span>
      <button class="small-button" onClick=${() => socket.hurry()}>Try now</button></section>`;
  }
  const lacks = [...new Set(["runs", "steps", "chains"].flatMap((about) => feed.missing.get(about) ?? []))];
  return html`<${Gone} />${lacks.length > 0 && html`<div class="notice" role="status">${lacks.slice(0, 2).map((each) => oneLine(each, 300)).join(" ")}</div>`}`;
}

/** Runs that this page shows and the server that answers now does not know, as after it was started anew. */
function Gone() {
  const { feed, run, route } = usePage();
  const [dismissed, dismiss] = useState(/** @type {ReadonlySet<string>} */ (new Set()));
  const gone = [...feed.gone.values()].filter((each) => !dismissed.has(each.id));
  if (!gone.length) return null;
  const shown = gone.find((each) => each.id === run);
  const named = gone.slice(-3).map(({ id, name }) => html` <a class="link-button" href=${formatRoute({ view: "overview", run: id })}>${oneLine(name || id.slice(0, 8), 60)}</a>`);
  const close = html`<button class="small-button" onClick=${() => dismiss(new Set([...dismissed, ...gone.map((each) => each.id)]))}>Close</button>`;
  if (shown) {
    return html`<section class="notice" aria-label="Runs that are gone"><span role="status">The server that answers now does not know this run. What is below is what this page saw of it.</span>
      <a class="link-button" href=${formatRoute({ view: "overview" })}>Show what it has now</a> ${route.run === null && close}</section>`;
  }
  return html`<section class="notice" aria-label="Runs that are gone"><span role="status">The server was started anew, and does not know ${gone.length === 1 ? "a run" : `${gone.length} runs`} that this page showed:</span>${named} ${close}</section>`;
}

function Refused() {
  const { socket } = usePage();
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const { what, todo, token } = adviceOn(socket.session);
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    const given = field.current?.value.trim() ?? "";
    socket.useToken(given === "" ? null : given);
  };
  return html`<section class="notice" aria-label="Connection"><span role="alert">${what} ${todo}</span>
    ${token
      ? html`<form class="token-form" onSubmit=${submit}><label>Token <input ref=${field} type="password" autocomplete="off" /></label> <button class="small-button">Connect</button></form>`
      : html`<button class="small-button" onClick=${() => socket.useToken(socket.session.token)}>Try again</button>`}</section>`;
}
