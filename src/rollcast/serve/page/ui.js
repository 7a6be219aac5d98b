// What every view needs to draw: Preact with htm, the page's context, and hooks that draw again when something has changed.

import htm, { createContext, h, useContext, useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/preact_htm.js";
import { whenThereIsTime } from "./frame.js";
import { chainKey } from "./store.js";
import { visible } from "./text.js";
import { chainTopic } from "./topics.js";

export const html = htm.bind(shown);

const PLAIN = /^[\x20-\x7e\n\t]*$/; // most texts, which need no closer look

/**
 * Preact's `h`, except that a character that cannot be seen, or that reorders others, becomes an escape in every text and every name of an
 * element. So a view may show text from outside unchanged.
 * @param {any} type
 * @param {Record<string, any> | null} props
 * @param {any[]} children
 * @returns {any}
 */
function shown(type, props, ...children) {
  if (typeof type === "string" && props !== null) {
    for (const name of Object.keys(props)) {
      if (typeof props[name] === "string" && (name === "title" || name.startsWith("aria-"))) props[name] = readable(props[name]);
    }
  }
  for (let i = 0; i < children.length; i += 1) children[i] = readable(children[i]);
  return h(type, props, ...children);
}

/** @param {any} child @returns {any} */
function readable(child) {
  if (typeof child === "string") return PLAIN.test(child) ? child : visible(child);
  if (Array.isArray(child) && child.some((each) => typeof each === "string" || Array.isArray(each))) return child.map(readable);
  return child;
}

export { createContext, useContext, useEffect, useLayoutEffect, useMemo, useRef, useState };

/**
 * @typedef {object} PageContext
 * @property {import("./store.js").Store} store
 * @property {import("./feed.js").Feed} feed
 * @property {import("./socket.js").Socket} socket
 * @property {import("./topics.js").Topics} topics
 * @property {import("./on_screen.js").OnScreen} onScreen
 * @property {import("./cancelling.js").Cancellations} cancels
 * @property {import("./replay.js").Replay} replay
 * @property {import("./route.js").Route} route
 * @property {string | null} run the run of the address, or the latest one
 * @property {string | null} rollout the run whose chains are meant
 * @property {string[]} rollouts the runs whose chains are shown together: that one, or all that go on
 * @property {import("./training.js").RunRow[]} runs
 * @property {(route: Partial<import("./route.js").Route>) => void} go
 * @property {(route: Partial<import("./route.js").Route>) => string} to the address of a place in this run, and of the moment that is shown
 * @property {(route: Partial<import("./route.js").Route>) => void} replaced changes the address, without a step for *back*
 * @property {Map<string, (event: KeyboardEvent) => void>} keys what keys do now
 */
export const Page = createContext(/** @type {any} */ (null));

/** @returns {PageContext} */
export function usePage() {
  return useContext(Page);
}

/**
 * A component that is drawn again only if one of its properties is another value.
 * @template P
 * @param {(props: P) => any} view
 * @returns {(props: P) => any}
 */
export function memo(view) {
  /** @this {any} @param {any} props */
  return function (props) {
    this.shouldComponentUpdate = differs;
    return h(/** @type {any} */ (view), props);
  };
}

/** @this {{props: Record<string, unknown>}} @param {Record<string, unknown>} next */
function differs(next) {
  const names = Object.keys(next);
  return names.length !== Object.keys(this.props).length || names.some((name) => next[name] !== this.props[name]);
}

/**
 * Keeps nodes by key. A node is made anew only if something that it is made of is another value: the same node tells Preact that nothing has
 * changed, so that it passes over it.
 * @returns {(key: unknown, of: unknown[], make: () => any) => any}
 */
export function useNodes() {
  const kept = useRef(/** @type {Map<unknown, {of: unknown[], node: any}>} */ (new Map())).current;
  return (key, of, make) => {
    const before = kept.get(key);
    if (before?.of.length === of.length && of.every((each, i) => each === before.of[i])) return before.node;
    const node = make();
    kept.set(key, { of, node });
    return node;
  };
}

/** @returns {() => void} draws again */
export function useAgain() {
  const [, again] = useReducer((/** @type {number} */ n) => n + 1, 0);
  return /** @type {() => void} */ (again);
}

/** Call the listener when one of the topics has changed. @param {string[]} topics @param {() => void} listener */
export function useListener(topics, listener) {
  const { topics: all } = usePage();
  const latest = useRef(listener);
  latest.current = listener;
  useLayoutEffect(() => {
    const ends = topics.map((topic) => all.listen(topic, () => latest.current()));
    return () => ends.forEach((end) => end());
  }, [all, topics.join()]);
}

/** Draw again when one of the topics has changed. @param {string[]} topics */
export function useTopics(...topics) {
  useListener(topics, useAgain());
}

/** Draw again when one of the topics has changed, and with it what `made` gives. @param {string[]} topics @param {() => string} made */
export function useTopicsFor(topics, made) {
  const again = useAgain();
  const before = useRef("");
  before.current = made();
  useListener(topics, () => before.current === made() || again());
}

/** Draw again when one of the topics has changed, in a frame that has time for it. @param {string[]} topics */
export function useTopicsApart(...topics) {
  const again = useAgain();
  useListener(topics, () => whenThereIsTime(again));
}

/** Call the listener every so often, while the page can be seen and is not paused. @param {number} ms @param {boolean} wanted @param {() => void} listener */
export function useTimer(ms, wanted, listener) {
  const { socket } = usePage();
  const latest = useRef(listener);
  latest.current = listener;
  useEffect(() => {
    if (!wanted) return undefined;
    const timer = setInterval(() => document.hidden || socket.session.paused || latest.current(), ms);
    return () => clearInterval(timer);
  }, [ms, wanted]);
}

/** Draw again every so often, while the page can be seen and is not paused. @param {number} ms @param {boolean} [wanted] */
export function useTicks(ms, wanted = true) {
  useTimer(ms, wanted, useAgain());
}

/**
 * What `make` gives, made at most every so often however often the view is drawn; the last change is not missed. With 0 it is made each time.
 * @template T
 * @param {number} ms
 * @param {() => T} make
 * @returns {T}
 */
export function useAtMostEvery(ms, make) {
  const again = useAgain();
  const now = performance.now();
  const known = useRef(/** @type {{at: number, made: T} | null} */ (null));
  if (known.current === null || now - known.current.at >= ms) known.current = { at: now, made: make() };
  const { at, made } = known.current;
  useEffect(() => {
    if (at === now) return undefined;
    const timer = setTimeout(again, at + ms - now); // what is shown may have changed since
    return () => clearTimeout(timer);
  });
  return made;
}

/** What keys do as long as the view is there, from the moment it is drawn. @param {Record<string, (event: KeyboardEvent) => void>} bound */
export function useKeys(bound) {
  const { keys } = usePage();
  const latest = useRef(bound);
  latest.current = bound;
  useLayoutEffect(() => {
    const names = Object.keys(latest.current);
    const mine = names.map((name) => /** @type {const} */ ([name, (/** @type {KeyboardEvent} */ event) => latest.current[name]?.(event)]));
    for (const [name, act] of mine) keys.set(name, act);
    return () => mine.forEach(([name, act]) => keys.get(name) === act && keys.delete(name));
  }, [keys]);
}

/** What is drawn of a chain beside the text of its open generation. @param {import("./chain_view.js").ChainView | undefined} view */
function shapeOf(view) {
  if (!view) return "";
  const { fields } = view;
  const calls = [...view.toolCalls.values()].map((call) => `${call.callId} ${call.status} ${call.output.end}`);
  return [
    view.state, view.messages.length, view.conversation.omitted, view.generation === null ? "" : fields.generation_step, calls.join(),
    fields.reward, fields.advantage, fields.errors, fields.gaps, fields.finish_reason, fields.rewards.length, fields.joined_late,
  ].join("|"); // prettier-ignore
}

/**
 * Draw again when chains have changed otherwise than by more text.
 * @param {string | null} runId
 * @param {readonly string[]} chainIds
 * @param {boolean} [mayWait] for a frame that has time for it
 */
export function useChains(runId, chainIds, mayWait = false) {
  const { topics, store, feed } = usePage();
  const redraw = useAgain();
  const again = mayWait ? () => whenThereIsTime(redraw) : redraw;
  const ids = chainIds.join("\n");
  useLayoutEffect(() => {
    if (runId === null) return undefined;
    const ends = chainIds.map((chainId) => {
      const key = chainKey(runId, chainId);
      const shape = () => `${shapeOf(store.chain(runId, chainId))}|${feed.loading.has(key)}|${store.timeLines.get(key)?.whole}|${store.gaps.get(key)?.all.length}`;
      let before = shape();
      let shown = store.chain(runId, chainId);
      return topics.listen(chainTopic(runId, chainId), () => {
        const now = shape();
        const view = store.chain(runId, chainId); // its story makes another one, which may look the same and have more tokens
        if (now === before && view === shown) return;
        before = now;
        shown = view;
        again();
      });
    });
    // The end of a story changes no chain, if all of its events were drawn before.
    const reading = () => chainIds.filter((chainId) => feed.loading.has(chainKey(runId, chainId))).length;
    let before = reading();
    ends.push(topics.listen("session", () => {
      const now = reading();
      if (now === before) return;
      before = now;
      again();
    })); // prettier-ignore
    redraw();
    return () => ends.forEach((end) => end());
  }, [topics, store, runId, ids]);
}

/** These chains, as far as their events came. What asks for them is drawn again when they change. @param {string} runId @param {string[]} ids @returns {import("./group.js").Member[]} */
export function useMembers(runId, ids) {
  const { store } = usePage();
  useChains(runId, ids, true);
  return /** @type {import("./group.js").Member[]} */ (ids.map((id) => ({ view: store.chain(runId, id), tokens: store.tokens(runId, id) })).filter((member) => member.view));
}

/** What is told whether an element is on screen. @type {WeakMap<Element, (seen: boolean) => void>} */
const SEERS = new WeakMap();
/** One for all elements, since a browser looks at each observer in each frame. @type {IntersectionObserver | null} */
let screen = null;

/** Whether the element is on screen, or nearly. @param {{current: Element | null}} ref */
export function useOnScreen(ref) {
  const [seen, see] = useState(false);
  useEffect(() => {
    const element = ref.current;
    if (!element) return undefined;
    screen ??= new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => SEERS.get(target)?.(isIntersecting)), { rootMargin: "120px" });
    SEERS.set(element, see);
    screen.observe(element);
    return () => screen?.unobserve(element);
  }, []);
  return seen;
}

/** Follow a chain token by token while it is wanted. @param {string | null} runId @param {string | null} chainId @param {boolean} wanted */
export function useFollowed(runId, chainId, wanted) {
  const { onScreen } = usePage();
  useEffect(() => (runId !== null && chainId !== null && wanted ? onScreen.add(runId, chainId) : undefined), [onScreen, runId, chainId, wanted]);
}
