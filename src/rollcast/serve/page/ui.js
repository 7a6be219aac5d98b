// What every view needs to draw: Preact with htm, the page's context, and hooks that draw again when data has changed.

import { createContext, h } from "./vendor/preact.js";
import { useContext, useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);
export { useEffect, useLayoutEffect, useMemo, useRef, useState };

/**
 * @typedef {{data: import("./data.js").Data, link: import("./link.js").Link, route: import("./routes.js").Route, run: string | null,
 *   rollout: string | null, go: (route: Partial<import("./routes.js").Route>, replace?: boolean) => void,
 *   keys: Map<string, (event: KeyboardEvent) => void>}} PageContext
 *
 * `run` is the run of the address, or the latest; `rollout` the run whose chains are meant.
 */
export const Page = createContext(/** @type {any} */ (null));

/** @returns {PageContext} */
export function usePage() {
  return useContext(Page);
}

/** Draw again when one of the topics has changed. @param {string[]} topics */
export function useTopics(...topics) {
  const { data } = usePage();
  const [, again] = useReducer((/** @type {number} */ n) => n + 1, 0);
  useLayoutEffect(() => {
    const ends = topics.map((topic) => data.listen(topic, () => again(0)));
    return () => ends.forEach((end) => end());
  }, [data, ...topics]);
}

/** Draw again every so often. @param {number} ms @param {boolean} [wanted] */
export function useTicks(ms, wanted = true) {
  const [, again] = useReducer((/** @type {number} */ n) => n + 1, 0);
  useEffect(() => {
    if (!wanted) return undefined;
    const timer = setInterval(() => document.hidden || again(0), ms);
    return () => clearInterval(timer);
  }, [ms, wanted]);
}

/** What keys do as long as the view is there. @param {Record<string, (event: KeyboardEvent) => void>} bound */
export function useKeys(bound) {
  const { keys } = usePage();
  const latest = useRef(bound);
  latest.current = bound;
  useEffect(() => {
    const names = Object.keys(latest.current);
    for (const name of names) keys.set(name, (event) => latest.current[name]?.(event));
    return () => names.forEach((name) => keys.delete(name));
  }, [keys]);
}

/** The rows of a run's chains, kept up to date as long as the view is there. @param {string | null} run */
export function useRows(run) {
  const { data } = usePage();
  useTopics(`rows:${run}`);
  useEffect(() => (run === null ? undefined : data.watchRows(run)), [data, run]);
  return run === null ? undefined : data.table(run);
}

/** Whether the element is on screen, or nearly. @param {{current: Element | null}} ref */
export function useOnScreen(ref) {
  const [seen, see] = useState(false);
  useEffect(() => {
    if (!ref.current) return undefined;
    const observer = new IntersectionObserver((entries) => see(entries.at(-1)?.isIntersecting ?? false), { rootMargin: "100px" });
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return seen;
}
