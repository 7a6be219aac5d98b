// Where a reader is in a transcript: at its end, which is followed while it is written, or at a turn that was jumped to. Turns far from the
// screen have no text.

import { createContext, useAgain, useEffect, useLayoutEffect, useMemo, usePage, useRef, useState } from "../ui.js";
import { isFollowing } from "../lists.js";
import { formatRoute } from "../route.js";

/** @typedef {import("../turns.js").Turn} Turn */
/** A turn to be brought on screen. @typedef {{number: number, focus: boolean}} Target */

const NEAR = 1_500; // pixels
const SURELY_FAR = 100; // pixels within that distance, in which a turn may be near or far

/**
 * The end stays in sight while it is written, until somebody scrolls up.
 * @param {{current: HTMLElement | null}} transcript
 * @param {string} shown which transcript it is
 * @param {boolean} open whether more may come
 */
export function useFollowing(transcript, shown, open) {
  const [following, follow] = useState(true);
  const wanted = useRef(false);
  wanted.current = following && open;
  useEffect(() => {
    if (!transcript.current) return undefined;
    const observer = new ResizeObserver(() => {
      if (wanted.current) scrollTo({ top: document.documentElement.scrollHeight });
    });
    observer.observe(transcript.current);
    return () => observer.disconnect();
  }, [shown]);
  useEffect(() => {
    let before = scrollY;
    const scrolled = () => {
      const { scrollHeight, clientHeight } = document.documentElement;
      if (isFollowing({ top: scrollY, height: clientHeight, total: scrollHeight })) follow(true);
      else if (scrollY < before) follow(false);
      before = scrollY;
    };
    addEventListener("scroll", scrolled, { passive: true });
    return () => removeEventListener("scroll", scrolled);
  }, []);
  return { following, follow };
}

/**
 * Bring a turn on screen. One that is far has no text yet, so it is brought near first, and into its place when it has.
 * @param {Turn[]} turns
 * @param {(on: boolean) => void} follow
 */
export function useJumps(turns, follow) {
  const { route, run } = usePage();
  const again = useAgain();
  const [target, aim] = useState(/** @type {Target | null} */ (null));
  const aiming = useRef(false);
  aiming.current = target !== null;
  const cameNear = useRef(() => void (aiming.current && again())).current; // a jump waits for it
  const jump = (/** @type {number} */ number, focus = true) => {
    follow(false);
    aim({ number, focus });
    history.replaceState(history.state, "", formatRoute({ ...route, run: route.run ?? run, turn: number }));
  };
  useLayoutEffect(() => {
    if (target === null) return;
    const block = document.getElementById(`turn-${target.number}`);
    if (!block) return;
    block.scrollIntoView({ block: "start" });
    const text = /** @type {HTMLElement | null} */ (block.querySelector("[data-turn]"));
    if (text === null && block.dataset.far !== undefined) return; // it is drawn in a moment
    if (isMovedSoon(block)) return;
    if (target.focus) text?.focus({ preventScroll: true });
    aim(null);
  });
  const moveTurn = (/** @type {number} */ delta) => {
    const numbers = turns.map((turn, i) => turn.step ?? i + 1);
    const at = numbers.findIndex((number) => document.getElementById(`turn-${number}`)?.contains(document.activeElement));
    const from = at >= 0 ? at : delta > 0 ? firstInSight(numbers) - 1 : Math.min(firstInSight(numbers) + 1, turns.length);
    const next = numbers[Math.min(Math.max(from + delta, 0), turns.length - 1)];
    if (next !== undefined) jump(next);
  };
  return { jump, aim, moveTurn, cameNear };
}

/** The place among these turns of the first one on screen. @param {number[]} numbers */
function firstInSight(numbers) {
  const at = numbers.findIndex((number) => (document.getElementById(`turn-${number}`)?.getBoundingClientRect().bottom ?? 0) > 80);
  return at < 0 ? numbers.length - 1 : at;
}

/**
 * Whether turns above this one are about to be drawn: they then get another height, which moves this one.
 * @param {HTMLElement} block
 */
function isMovedSoon(block) {
  const blocks = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(".transcript .block")]);
  for (let at = blocks.indexOf(block) - 1; at >= 0; at -= 1) {
    const above = /** @type {HTMLElement} */ (blocks[at]);
    if (above.getBoundingClientRect().bottom < SURELY_FAR - NEAR) return false;
    if (above.dataset.far !== undefined) return true;
  }
  return false;
}

/** @type {WeakMap<Element, (near: boolean) => void>} */
const watched = new WeakMap();
/** @type {IntersectionObserver | null} one for all: a browser spends time on each */
let nearness = null;

/** Tell whenever an element comes near the screen, or is far from it again. @param {Element} element @param {(near: boolean) => void} tell @returns {() => void} ends it */
function watchNear(element, tell) {
  const observer = (nearness ??= new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => watched.get(target)?.(isIntersecting)), { rootMargin: `${NEAR}px 0px` }));
  watched.set(element, tell);
  observer.observe(element);
  return () => observer.unobserve(element);
}

/** What a part of a transcript tells its turns. @typedef {{near: boolean, heights: Map<string, number>}} Nearness `heights`: the last known ones of far turns, by the ids of their blocks */
export const Nearness = createContext(/** @type {Nearness} */ ({ near: true, heights: new Map() }));

/**
 * Whether a part of a transcript is near the screen; it is if they are few. Turns that are far keep their height, so that nothing moves.
 * @param {{current: HTMLElement | null}} place the part; its blocks are its children
 * @param {boolean} windowed
 * @param {() => void} cameNear
 * @returns {Nearness}
 */
export function useNear(place, windowed, cameNear) {
  const [near, set] = useState(!windowed);
  const heights = useRef(/** @type {Map<string, number>} */ (new Map())).current;
  useEffect(() => {
    if (!windowed || !place.current) {
      set(true);
      return undefined;
    }
    return watchNear(place.current, (is) => {
      const blocks = is ? [] : /** @type {HTMLElement[]} */ ([...(place.current?.children ?? [])]);
      for (const block of blocks) if (block.id && block.dataset.far === undefined) heights.set(block.id, block.offsetHeight);
      set(is);
    });
  }, [windowed]);
  useLayoutEffect(() => {
    if (near && windowed) cameNear();
  }, [near, windowed]);
  return useMemo(() => ({ near: near || !windowed, heights }), [near || !windowed]);
}
