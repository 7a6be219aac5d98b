// The frame around the views: header, footer, keys, and which view is shown.

import { formatRoute, parseRoute } from "./route.js";
import { runName } from "./format.js";
import { allRuns, latestRun, rolloutOf, rolloutsOf, runRow } from "./training.js";
import { nextTheme } from "./theme.js";
import { oneLine } from "./text.js";
import { html, Page, useAgain, useEffect, useLayoutEffect, useMemo, usePage, useRef, useState, useTicks } from "./ui.js";
import { isUnknownRun, UnknownRun } from "./views/absence.js";
import { ChainPage } from "./views/chain.js";
import { ChainsPage } from "./views/chains.js";
import { Status, togglePause, Trouble } from "./views/connection.js";
import { EventsPage } from "./views/events.js";
import { GroupPage } from "./views/group.js";
import { Help } from "./views/help.js";
import { Overview } from "./views/overview.js";
import { ReplayBar, ReplayLink, replayQuery, replayTime, toggleReplay, useReplay } from "./views/replay.js";
import { RunsPage } from "./views/runs.js";

/** @typedef {import("./route.js").Route} Route */

/**
 * @param {{store: import("./store.js").Store, feed: import("./feed.js").Feed, socket: import("./socket.js").Socket,
 *   topics: import("./topics.js").Topics, onScreen: import("./on_screen.js").OnScreen,
 *   cancels: import("./cancelling.js").Cancellations, replay: import("./replay.js").Replay}} props
 */
export function App({ store, feed, socket, topics, onScreen, cancels, replay }) {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  const [helping, help] = useState(false);
  const again = useAgain();
  const keys = useMemo(() => new Map(), []);
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    const moved = () => {
      setRoute(parseRoute(location.hash));
      scrollTo(0, 0);
      // What had the focus may be gone with the view; a reader of the screen then goes on at the beginning of the new one.
      requestAnimationFrame(() => document.activeElement === document.body && main.current?.focus({ preventScroll: true }));
    };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useLayoutEffect(() => topics.listen("runs", again), [topics]);

  const runs = allRuns(store);
  const run = route.run ?? (feed.hasFolder ? null : latestRun(runs));
  useEffect(() => {
    if (route.run !== null && runs.length > 0) feed.openRecord(route.run);
  }, [feed, route.run, runs.length > 0]);
  const rollout = rolloutOf(runs, run, route.query.step?.[0]);
  const ofChain = route.view === "chain" || route.view === "group";
  const rollouts = ofChain && rollout !== null ? [rollout] : rolloutsOf(runs, run, route.query.step?.[0]);
  const wantsRows = route.view !== "runs" && rollouts.length > 0;
  useEffect(() => {
    if (!wantsRows) return undefined;
    const [first] = rollouts;
    feed.watchChains(rollouts.length === 1 && first !== undefined ? { run: first } : { filter: { run_id: rollouts } });
    return () => feed.unwatchChains();
  }, [feed, rollouts.join(), wantsRows]);

  useReplay({ replay, store, socket, route, run });
  const to = (/** @type {Partial<Route>} */ place) => formatRoute({ run, ...place, query: { ...replayQuery(route), ...place.query } });
  const go = (/** @type {Partial<Route>} */ place) => {
    location.hash = to(place);
  };
  const replaced = (/** @type {Partial<Route>} */ place) => {
    history.replaceState(null, "", formatRoute({ ...parseRoute(location.hash), ...place })); // what is drawn may be older
    setRoute(parseRoute(location.hash));
  };
  const context = { store, feed, socket, topics, onScreen, cancels, replay, route, run, rollout, rollouts, runs, go, to, replaced, keys };

  useLayoutEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      const target = /** @type {HTMLElement} */ (event.target);
      if (target.closest("input, textarea, select, dialog")) return;
      const act = keys.get(event.key) ?? common[event.key];
      if (!act) return;
      event.preventDefault();
      act(event);
    };
    /** @type {Record<string, (event: KeyboardEvent) => void>} */
    const common = {
      "?": () => help(true),
      o: () => {
        const here = parseRoute(location.hash);
        location.hash = formatRoute({ view: "overview", run: here.run, query: replayQuery(here) });
      },
      r: () => (location.hash = formatRoute({ view: "runs" })),
      p: () => togglePause(socket),
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [keys, socket]);

  const row = runRow(store, run);
  useEffect(() => {
    const place = oneLine(route.chain ?? route.group ?? "", 60);
    document.title = `${place ? `${place} · ` : ""}${row ? runName(row) : "Rollcast"}${row ? " · Rollcast" : ""}`;
  });
  /** @type {Record<Route["view"], () => any>} */
  const views = { overview: Overview, group: GroupPage, chain: ChainPage, events: EventsPage, runs: RunsPage, chains: ChainsPage };
  const unknown = route.view !== "runs" && isUnknownRun({ feed, store, run });
  useEffect(() => (unknown || (run !== null && !feed.knowsRuns(run)) ? topics.listen("session", again) : undefined), [topics, run, unknown, run !== null && feed.knowsRuns(run)]);
  const view = feed.hasFolder && run === null ? RunsPage : unknown ? UnknownRun : views[route.view];
  return html`<${Page.Provider} value=${context}>
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), main.current?.focus())}>To the content</a>
    <${Header} row=${row} />
    <${Trouble} />
    ${replay.active && html`<${ReplayBar} />`}
    <main ref=${main} id="main" tabindex="-1"><${view} key=${`${route.view} ${run} ${route.group ?? ""}`} /></main>
    <${Footer} help=${() => help(true)} />
    ${helping && html`<${Help} close=${() => help(false)} />`}
  <//>`;
}

/** @param {{row: import("./training.js").RunRow | null}} props */
function Header({ row }) {
  return html`<${Page.Consumer}>${(/** @type {import("./ui.js").PageContext} */ page) => {
    const { route, run, to, store } = page;
    const step = route.query.step;
    const kept = step ? { step } : {};
    const training = runRow(store, row?.parent_run_id ?? null); // if the run is a part of one
    const root = training ?? row;
    const part = training === null || row === null ? null : row.split === "eval" ? `evaluation after step ${row.train_step ?? "?"}` : `step ${row.train_step ?? "?"}`;
    /** @type {[string, Route["view"], string][]} */
    const views = [
      ["Overview", "overview", to({ view: "overview" })],
      ["Chains", "chains", to({ view: "chains", query: kept })],
      ["Events", "events", to({ view: "events" })],
      ["Runs", "runs", to({ view: "runs" })],
    ];
    return html`<header class="head">
      <a class="mark" href=${formatRoute({ view: "overview" })}>rollcast</a>
      <nav class="nav" aria-label="Views">
        ${views.map(([name, view, href]) => html`<a key=${view} href=${href} aria-current=${route.view === view ? "page" : undefined}>${name}</a>`)}
      </nav>
      <span class="crumb wide-only">
        ${root && route.view !== "runs" && html`<a href=${to({ view: "overview", run: root.run_id })}>${runName(root)}${root.model ? ` · ${oneLine(String(root.model), 60)}` : ""}</a>`}
        ${part && route.view !== "runs" && html`<span aria-hidden="true">›</span><a href=${to({ view: "overview" })}>${part}</a>`}
        ${step && run && part === null && html`<span aria-hidden="true">›</span><a href=${to({ view: "overview", query: kept })}>step ${step[0]}</a>`}
      </span>
      <span class="grow"></span>
      <${ReplayLink} />
      <${Status} />
      <button class="icon" aria-label="Change between light and dark" title="Light or dark" onClick=${nextTheme}>◐</button>
    </header>`;
  }}<//>`;
}

/** What this page costs. @param {{help: () => void}} props */
function Footer({ help }) {
  const { socket, onScreen, topics } = usePage();
  const again = useAgain();
  const before = useRef({ at: 0, events: 0, characters: 0 });
  const rates = useRef({ events: 0, characters: 0 });
  useEffect(() => {
    const measure = () => {
      if (document.hidden) return;
      const { events, characters } = socket.session.counts;
      const at = performance.now() / 1000;
      const past = Math.max(at - before.current.at, 0.1);
      rates.current = { events: (events - before.current.events) / past, characters: (characters - before.current.characters) / past };
      before.current = { at, events, characters };
      again();
    };
    const { events, characters } = socket.session.counts;
    before.current = { at: performance.now() / 1000, events, characters };
    const timer = setInterval(measure, 1000);
    const end = topics.listen("session", () => onScreen.count !== shown.current && again());
    return () => {
      clearInterval(timer);
      end();
    };
  }, [socket, topics]);
  const shown = useRef(0);
  shown.current = onScreen.count;
  const count = onScreen.count;
  return html`<footer class="foot" aria-label="What this page costs">
    <span>This page asks for <b>${count === 0 ? "rows of chains, no tokens" : `${count} chain${count === 1 ? "" : "s"}, token by token`}</b></span>
    <span>events sent to it <b>${Math.round(rates.current.events).toLocaleString("en")}/s</b></span>
    <span><b>${(rates.current.characters / 1000).toFixed(1)} kB/s</b></span>
    <span>gaps <b>${socket.session.counts.gaps}</b></span>
    <span class="grow"></span>
    <button onClick=${help}><kbd>?</kbd> keys</button>
  </footer>`;
}
