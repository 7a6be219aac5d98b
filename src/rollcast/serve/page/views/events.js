// The events as they come, a line each, without tokens. Only the lines on screen are drawn.

import { html, useEffect, useKeys, useLayoutEffect, usePage, useRef, useState, useTopics } from "../ui.js";
import { clock, counted, fixed } from "../format.js";
import { isFollowing, windowOf } from "../lists.js";
import { callLine, oneLine } from "../text.js";
import { addressOf, childrenOf, runRow } from "../training.js";

const ROW = 26; // pixels
const MAX_NAMED = 1_000; // runs in a filter
const ALL = ["run_start", "run_end", "train_step", "chain_start", "chain_end", "llm_generation_end", "tool_call_start", "tool_observation", "tool_call_end", "reward", "message", "error", "gap"];
const CHIPS = /** @type {[string, string[]][]} */ ([
  ["runs and steps", ["run_start", "run_end", "train_step"]],
  ["chains", ["chain_start", "chain_end", "message"]],
  ["generations", ["llm_generation_end"]],
  ["tools", ["tool_call_start", "tool_observation", "tool_call_end"]],
  ["rewards", ["reward"]],
  ["errors and gaps", ["error", "gap"]],
]);

export function EventsPage() {
  const { store, feed, route, run, runs, rollout, go, to } = usePage();
  useTopics("events");
  const shown = route.query.types ?? [];
  const types = shown.length ? CHIPS.filter(([name]) => shown.includes(name)).flatMap((chip) => chip[1]) : ALL;
  const training = childrenOf(runs, run).length > 0;
  const row = runRow(store, run);
  const replaying = store.moment !== null;
  const over = !replaying && row !== null && row.status !== "running";
  useEffect(() => {
    if (run === null) return undefined;
    // A training's next rollouts are not known yet; of one that is over, all are.
    const own = [run, ...childrenOf(runs, run).map((row) => row.run_id)];
    const filter = training && (!over || own.length > MAX_NAMED) ? { types } : { types, runs: own };
    feed.followEvents(filter, { since: over ? "start" : "live" });
    return () => feed.unfollowEvents();
  }, [feed, run, training, over, types.join()]);
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const [top, setTop] = useState(0);
  const [following, follow] = useState(true);
  const [height, setHeight] = useState(600);
  const { events } = store;
  useLayoutEffect(() => {
    const box = place.current;
    if (!box) return;
    if (box.clientHeight !== height) setHeight(box.clientHeight);
    if (following) box.scrollTop = box.scrollHeight;
  });
  const scrolled = () => {
    const box = /** @type {HTMLElement} */ (place.current);
    setTop(box.scrollTop);
    follow(isFollowing({ top: box.scrollTop, height: box.clientHeight, total: box.scrollHeight }));
  };
  useKeys({ f: () => follow(!following) });
  const press = (/** @type {string} */ name) => {
    const next = shown.includes(name) ? shown.filter((each) => each !== name) : [...shown, name];
    go({ view: "events", query: next.length ? { types: next } : {} });
  };
  // Where the end will be once it is followed; `top` is known only after that.
  const from = following ? Math.max(events.length * ROW - height, 0) : top;
  const { first, last } = windowOf({ count: events.length, rowHeight: ROW, top: from, height });
  /** @type {Map<string, ReturnType<typeof addressOf>>} */
  const addresses = new Map();
  const placeOf = (/** @type {string} */ id) => {
    const known = addresses.get(id) ?? addressOf(runs, id);
    addresses.set(id, known);
    return known;
  };
  return html`<div class="title"><div><h1>Events</h1><p class="muted">${over ? `The latest ${counted(events.length, "event")} of a run that is over` : `${counted(events.length, "event")} since ${replaying ? "the replay began here" : "this view was opened"}`}, without tokens${following ? "" : " · not following"}</p></div>
      <button class="small-button" aria-pressed=${following ? "true" : "false"} onClick=${() => follow(!following)}>${following ? "Following the end" : "Follow the end"} <kbd>f</kbd></button></div>
    <div class="chips" role="group" aria-label="Kinds of events">${CHIPS.map(([name]) => html`<button key=${name} class="chip" aria-pressed=${shown.includes(name) ? "true" : "false"} onClick=${() => press(name)}>${name}</button>`)}</div>
    <section class="panel event-list" ref=${place} onScroll=${scrolled} tabindex="0" aria-label="Events">
      <div style=${{ height: `${events.length * ROW}px`, position: "relative" }}>
        ${events.slice(first, last).map((event, i) => html`<${Line} key=${first + i} event=${event} top=${(first + i) * ROW} href=${event.chain_id && event.run_id ? to({ ...placeOf(event.run_id), view: "chain", chain: event.chain_id }) : null} />`)}
      </div>
      ${events.length === 0 && html`<p class="empty">${rollout === null || run === null ? "There is no run yet." : "Waiting for events …"}</p>`}
    </section>`;
}

/** @param {{event: import("../chain_view.js").StreamEvent, top: number, href: string | null}} props */
function Line({ event, top, href }) {
  const { feed } = usePage();
  const { event_type: type, data } = event;
  const load = type === "gap" ? feed.loaderOf(event) : null;
  const kind = type === "error" || type === "gap" ? "error" : type.startsWith("tool") ? "tool" : "";
  return html`<div class=${`event-row ${kind}`} style=${{ top: `${top}px` }}>
    <span class="muted">${clock(event.timestamp)}</span><span class="type">${oneLine(type, 40)}</span>
    ${href ? html`<a class="chain" href=${href}>${oneLine(event.chain_id, 30)}</a>` : html`<span class="chain"></span>`}<span>${tell(type, data ?? {})}${load && html` <button class="small-button" onClick=${load}>Load</button>`}</span></div>`;
}

/** An event on a line. @param {string} type @param {Record<string, any>} data */
function tell(type, data) {
  switch (type) {
    case "tool_call_start":
      return callLine(String(data.tool_name ?? ""), data.arguments, 160);
    case "tool_observation":
      return oneLine(`${data.tool_name ?? ""} → ${text(data.observation)}`, 160);
    case "tool_call_end":
      return oneLine(`${data.tool_name ?? ""} ${data.status ?? ""}`, 160);
    case "reward":
      return `${fixed(data.reward)}${data.final === false ? " for a step" : ""}`;
    case "chain_end":
      return oneLine(`${data.finish_reason ?? ""} · reward ${fixed(data.reward)} · ${text(data.final_response)}`, 160);
    case "chain_start":
      return oneLine(text(data.messages?.at?.(-1)?.content), 160);
    case "llm_generation_end":
      return oneLine(text(data.content), 160);
    case "train_step":
      return `step ${data.train_step} · mean reward ${fixed(data.metrics?.mean_reward)} · loss ${fixed(data.metrics?.loss, 4)}`;
    case "run_start":
      return oneLine(`${data.chains ?? ""} chains · ${data.split ?? ""} ${data.train_step ?? ""} ${data.agent ?? ""}`, 160);
    case "run_end":
      return oneLine(`${data.status ?? ""}${typeof data.mean_reward === "number" ? ` · mean reward ${fixed(data.mean_reward)}` : ""}`, 160);
    case "error":
      return oneLine(`${data.where ?? data.error_type ?? ""}: ${text(data.error)}`, 200);
    case "gap":
      return oneLine(`events are missing: ${text(data.reason)}`, 200);
    default:
      return oneLine(JSON.stringify(data), 160);
  }
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value.slice(0, 2_000) : value === null || value === undefined ? "" : JSON.stringify(value).slice(0, 2_000);
}
