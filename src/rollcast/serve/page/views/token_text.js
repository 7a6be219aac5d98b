// The text of a generation: one Text node while it is written, to which what is new is appended once a frame. What the probability of a
// token was is shown by the CSS Custom Highlight API, so that no element is made for a token as it comes. A browser looks at all ranges of
// all highlights again whenever any text has changed, and paints their texts anew. So when a generation is over, its tokens that stand out get
// an element each, and then cost nothing more.

import { html, useEffect, useLayoutEffect, usePage, useRef } from "../ui.js";
import { inNextFrame } from "../frame.js";
import { piecesOf } from "../pieces.js";
import { segmentsOf } from "../segments.js";
import { visible } from "../text.js";
import { surprise } from "../tokens.js";
import { chainTopic } from "../topics.js";

/** @typedef {import("../segments.js").Segment} Segment */
/** @typedef {import("../turns.js").Turn} Turn */

const MAX_SHOWN = 120_000; // UTF-16 units of one text
const SHADE_MS = 150; // texts that grow are shaded no more often
const MARGIN = "200px"; // around the screen: texts further away are not shaded
const MAX_ELEMENTS = 4_000; // of one text; a longer one keeps its ranges

const canHighlight = typeof Highlight === "function" && typeof CSS !== "undefined" && "highlights" in CSS;

/** @param {string} name @returns {Highlight | null} */
function highlight(name) {
  if (!canHighlight) return null;
  let found = CSS.highlights.get(name);
  if (!found) {
    CSS.highlights.set(name, (found = new Highlight()));
    if (name === "token") found.priority = 1;
  }
  return found;
}

/** Whether it is shaded. @param {Segment} segment */
function standsOut(segment) {
  return Boolean(surprise(segment.p));
}

// Only texts on screen have ranges, and texts that grow get theirs some at a time.

/** @type {Set<Drawn>} texts with tokens that wait to be shaded */
const unshaded = new Set();
let shadedAt = -Infinity;
let shadesDue = false;

/** @param {Drawn} drawn */
function shadeSoon(drawn) {
  unshaded.add(drawn);
  if (shadesDue) return;
  shadesDue = true;
  const pause = shadedAt + SHADE_MS - performance.now();
  if (pause <= 0) inNextFrame(shadeAll);
  else setTimeout(() => inNextFrame(shadeAll), pause);
}

function shadeAll() {
  shadesDue = false;
  shadedAt = performance.now();
  for (const drawn of unshaded) drawn.shade();
  unshaded.clear();
}

/** @type {WeakMap<Element, Drawn>} */
const places = new WeakMap();
/** @type {IntersectionObserver | null} */
let watcher = null;

/** Watch whether the text is on screen. @param {Drawn} drawn */
function watch(drawn) {
  if (!canHighlight) return;
  watcher ??= new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) places.get(target)?.see(isIntersecting);
    },
    { rootMargin: MARGIN },
  );
  places.set(drawn.element, drawn);
  watcher.observe(drawn.element);
}

/** The text of one turn in an element. */
class Drawn {
  /** @param {HTMLElement} element @param {import("../pieces.js").Pieces} pieces */
  constructor(element, pieces) {
    this.element = element;
    this.pieces = pieces;
    /** @type {Text[]} what is shown, in order; a segment lies in one of them */
    this.nodes = [document.createTextNode("")];
    element.append(...this.nodes);
    /** @type {number[]} where each of them begins in what is shown */
    this.bases = [0];
    this.length = 0; // of what is shown
    this.settled = false; // whether tokens that stand out have elements
    /** @type {Segment[]} */
    this.segments = [];
    /** @type {number[]} where each segment begins in what is shown */
    this.starts = [];
    /** @type {import("../bounded.js").Tail | null} of the open generation that is shown */
    this.tail = null;
    this.end = 0; // characters of the generation that are shown
    this.spans = 0; // how many spans they had
    this.closed = "";
    /** @type {[Highlight, StaticRange][]} */
    this.ranges = [];
    this.shaded = 0; // how many segments have got their ranges
    this.onScreen = false;
    /** @type {StaticRange | null} */
    this.marked = null;
    watch(this);
  }

  /** The element has come on screen, or has left it. @param {boolean} onScreen */
  see(onScreen) {
    this.onScreen = onScreen;
    if (onScreen) shadeSoon(this);
    else this.unshade();
  }

  /** The element goes. */
  leave() {
    watcher?.unobserve(this.element);
    unshaded.delete(this);
    this.onScreen = false;
    this.clear();
    this.element.replaceChildren();
  }

  /** The generation goes on. @param {import("../bounded.js").Tail} tail @param {readonly import("../tokens.js").Span[]} spans */
  grow(tail, spans) {
    const more = tail === this.tail ? tail.after(this.end) : null;
    if (more === null) {
      this.clear();
      this.tail = tail;
      this.append(segmentsOf(tail.text, tail.omitted, spans, 0, this.pieces));
    } else if (more || spans.length > this.spans) {
      this.append(segmentsOf(more, this.end, spans, this.spans, this.pieces));
    }
    this.end = tail.end;
    this.spans = spans.length;
  }

  /** The generation is over. @param {Turn} turn @param {readonly import("../tokens.js").Span[]} spans */
  close(turn, spans) {
    const closed = `${turn.text.length} ${spans.length} ${this.segments.some((each) => each.ids.length !== 1) ? this.pieces.version : ""}`;
    if (this.closed === closed) return;
    this.clear();
    const segments = segmentsOf(turn.text, turn.omitted, spans, 0, this.pieces);
    if (segments.filter(standsOut).length <= MAX_ELEMENTS) this.settle(segments);
    else this.append(segments);
    this.closed = `${turn.text.length} ${spans.length} ${this.segments.some((each) => each.ids.length !== 1) ? this.pieces.version : ""}`;
  }

  /** What more segments show; there is a limit to all of it. @param {Segment[]} segments @returns {string[]} */
  take(segments) {
    const texts = segments.map((segment) => {
      const start = this.length;
      let shown = visible(segment.text);
      if (start + shown.length > MAX_SHOWN) shown = start >= MAX_SHOWN ? "" : `${shown.slice(0, MAX_SHOWN - start)}…`;
      this.segments.push(segment);
      this.starts.push(start);
      this.length += shown.length;
      return shown;
    });
    this.element.classList.toggle("unknown", this.segments.length > 0 && this.segments.every((segment) => segment.p === null));
    return texts;
  }

  /** Show more of a text that grows. @param {Segment[]} segments */
  append(segments) {
    const text = this.take(segments).join("");
    if (text) this.nodes[0]?.appendData(text);
    if (this.onScreen) shadeSoon(this);
  }

  /** Show a text that is over. @param {Segment[]} segments */
  settle(segments) {
    const texts = this.take(segments);
    const parts = document.createDocumentFragment();
    this.settled = true;
    this.nodes = [];
    this.bases = [];
    for (let i = 0; i < texts.length; ) {
      const level = surprise(/** @type {Segment} */ (segments[i]).p);
      let text = /** @type {string} */ (texts[i]);
      this.bases.push(/** @type {number} */ (this.starts[i]));
      i += 1;
      if (!level) while (i < texts.length && !standsOut(/** @type {Segment} */ (segments[i]))) text += texts[i++];
      const node = document.createTextNode(text);
      this.nodes.push(node);
      if (level) parts.appendChild(document.createElement("span")).append(node);
      else parts.append(node);
      if (level) /** @type {Element} */ (node.parentNode).className = `t${level}`;
    }
    this.element.replaceChildren(parts);
  }

  /** The range of a segment. @param {number} i @returns {StaticRange | null} */
  rangeOf(i) {
    const from = this.starts[i];
    const to = this.starts[i + 1] ?? this.length;
    if (from === undefined || from === to) return null;
    const at = lastUpTo(this.bases, from);
    const [node, base] = [/** @type {Text} */ (this.nodes[at]), /** @type {number} */ (this.bases[at])];
    return new StaticRange({ startContainer: node, startOffset: from - base, endContainer: node, endOffset: to - base });
  }

  /** Give tokens that have none yet their ranges, if they are on screen. */
  shade() {
    if (!this.onScreen || this.settled) return;
    for (; this.shaded < this.segments.length; this.shaded += 1) {
      const level = surprise(/** @type {Segment} */ (this.segments[this.shaded]).p);
      const group = level ? highlight(`t${level}`) : null;
      const range = group && this.rangeOf(this.shaded);
      if (!range) continue;
      group.add(range);
      this.ranges.push([group, range]);
    }
  }

  unshade() {
    for (const [group, range] of this.ranges) group.delete(range);
    this.ranges = [];
    this.shaded = 0;
  }

  clear() {
    this.unshade();
    this.mark(-1);
    this.starts = [];
    this.segments = [];
    this.nodes = [document.createTextNode("")];
    this.element.replaceChildren(...this.nodes);
    this.bases = [0];
    this.length = 0;
    this.settled = false;
    this.tail = null;
    this.end = this.spans = 0;
    this.closed = "";
  }

  /** Mark the token that facts are shown of. @param {number} index -1 for none */
  mark(index) {
    const group = highlight("token");
    if (this.marked) group?.delete(this.marked);
    this.marked = index < 0 ? null : this.rangeOf(index);
    if (this.marked) group?.add(this.marked);
  }

  /** The token at a place on screen; -1 if there is none. @param {number} x @param {number} y */
  at(x, y) {
    const place = document.caretPositionFromPoint?.(x, y);
    const at = place ? this.nodes.indexOf(/** @type {Text} */ (place.offsetNode)) : -1;
    return at < 0 ? -1 : lastUpTo(this.starts, /** @type {number} */ (this.bases[at]) + /** @type {CaretPosition} */ (place).offset);
  }
}

/** The place of the last of these numbers that is not above another; they rise. @param {number[]} numbers @param {number} most */
function lastUpTo(numbers, most) {
  let low = 0;
  let high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (/** @type {number} */ (numbers[middle]) <= most) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * The open generation of a chain, if it is that of the step.
 * @param {import("../chain_view.js").ChainView | undefined} view
 * @param {number | null} step
 */
function openTail(view, step) {
  return view && view.generation !== null && view.fields.generation_step === step ? view.generation : null;
}

/**
 * The tokens of a turn. Arrow keys or a pointer choose one; `onToken` is told which.
 * @param {{runId: string, chainId: string, turn: Turn, label: string, onToken?: (segment: Segment | null, turn: Turn) => void}} props
 */
export function TokenText({ runId, chainId, turn, label, onToken }) {
  const { store, topics } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const drawn = useRef(/** @type {Drawn | null} */ (null));
  const chosen = useRef(-1);
  const latest = useRef(turn);
  latest.current = turn;

  const draw = () => {
    const view = store.chain(runId, chainId);
    const spans = store.tokens(runId, chainId)?.of(latest.current.step) ?? [];
    const tail = openTail(view, latest.current.step);
    if (tail) drawn.current?.grow(tail, spans);
    else drawn.current?.close(latest.current, spans);
  };
  useLayoutEffect(() => {
    const it = new Drawn(/** @type {HTMLElement} */ (place.current), piecesOf(store.chain(runId, chainId)?.fields.model ?? ""));
    drawn.current = it;
    draw();
    const end = topics.listen(chainTopic(runId, chainId), () => {
      if (openTail(store.chain(runId, chainId), latest.current.step)) draw();
    });
    return () => {
      end();
      it.leave();
      drawn.current = null;
    };
  }, [store, topics, runId, chainId, turn.step]);
  useLayoutEffect(draw);

  const choose = (/** @type {number} */ index) => {
    chosen.current = index;
    drawn.current?.mark(index);
    onToken?.(drawn.current?.segments[index] ?? null, latest.current);
  };
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    const last = (drawn.current?.starts.length ?? 0) - 1;
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: chosen.current + 1, ArrowLeft: chosen.current - 1, Home: 0, End: last };
    const next = moves[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(Math.min(Math.max(next, 0), last));
  };
  const onPointer = (/** @type {PointerEvent} */ event) => {
    const index = drawn.current?.at(event.clientX, event.clientY) ?? -1;
    if (index >= 0 && index !== chosen.current) choose(index);
  };
  if (!onToken) return html`<div class="tokens" ref=${place}></div>`;
  return html`<div class="tokens" ref=${place} role="group" tabindex="0" aria-label=${label} data-turn
    onKeyDown=${onKeyDown} onPointerMove=${onPointer} onPointerDown=${onPointer}
    onFocus=${() => choose(Math.max(chosen.current, 0))} onBlur=${() => drawn.current?.mark(-1)}></div>`;
}

/**
 * The end of the open generation, on a line.
 * @param {{runId: string, chainId: string, step: number | null, characters?: number}} props
 */
export function TokenTail({ runId, chainId, step, characters = 28 }) {
  const { store, topics } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const node = document.createTextNode("");
    /** @type {HTMLElement} */ (place.current).append(node);
    let end = -1;
    const draw = () => {
      const tail = openTail(store.chain(runId, chainId), step);
      if (!tail || tail.end === end) return;
      end = tail.end;
      node.data = visible(tail.text.slice(-4 * characters).replace(/\s+/g, " ")).slice(-characters);
    };
    draw();
    const stop = topics.listen(chainTopic(runId, chainId), draw);
    return () => {
      stop();
      node.remove();
    };
  }, [store, topics, runId, chainId, step, characters]);
  return html`<span class="say tail"><span ref=${place}></span><i class="caret" aria-hidden="true"></i></span>`;
}

