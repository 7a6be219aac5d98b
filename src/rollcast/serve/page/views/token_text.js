// The text of a generation while it is written: one Text node, to which what is new is appended once a frame. What the probability of a
// token was is shown by the CSS Custom Highlight API, so that no element is made for a token.

import { html, useEffect, useLayoutEffect, usePage, useRef } from "../ui.js";
import { piecesOf } from "../pieces.js";
import { segmentsOf } from "../segments.js";
import { visible } from "../text.js";
import { bucketOf } from "../tokens.js";
import { chainTopic } from "../topics.js";

/** @typedef {import("../segments.js").Segment} Segment */
/** @typedef {import("../turns.js").Turn} Turn */

const SCALE = { top: -Math.log(0.05) }; // the same for every text, so that colours can be compared
const HIGHEST = 6;
const MAX_SHOWN = 120_000; // UTF-16 units of one text

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

/** How surprising a probability is, from 0 to 6; null if it is not known. @param {number | null} p */
export function surprise(p) {
  if (p === null) return null;
  return Math.min(bucketOf(Math.log(Math.max(p, 1e-300)), SCALE) ?? 0, HIGHEST);
}

/** The text of one turn in an element. */
class Drawn {
  /** @param {HTMLElement} element @param {import("../pieces.js").Pieces} pieces */
  constructor(element, pieces) {
    this.element = element;
    this.pieces = pieces;
    this.node = document.createTextNode("");
    element.append(this.node);
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
    /** @type {StaticRange | null} */
    this.marked = null;
  }

  /** The generation goes on. @param {import("../bounded.js").Tail} tail @param {readonly import("../tokens.js").Span[]} spans */
  grow(tail, spans) {
    const more = tail === this.tail ? tail.after(this.end) : null;
    if (more === null) {
      this.clear();
      this.tail = tail;
      this.add(segmentsOf(tail.text, tail.omitted, spans, 0, this.pieces));
    } else if (more || spans.length > this.spans) {
      this.add(segmentsOf(more, this.end, spans, this.spans, this.pieces));
    }
    this.end = tail.end;
    this.spans = spans.length;
  }

  /** The generation is over. @param {Turn} turn @param {readonly import("../tokens.js").Span[]} spans */
  close(turn, spans) {
    const closed = `${turn.text.length} ${spans.length} ${this.segments.some((each) => each.ids.length !== 1) ? this.pieces.version : ""}`;
    if (this.closed === closed) return;
    this.clear();
    this.add(segmentsOf(turn.text, turn.omitted, spans, 0, this.pieces));
    this.closed = `${turn.text.length} ${spans.length} ${this.segments.some((each) => each.ids.length !== 1) ? this.pieces.version : ""}`;
  }

  /** @param {Segment[]} segments */
  add(segments) {
    let text = "";
    const from = this.node.length;
    for (const segment of segments) {
      const start = from + text.length;
      let shown = visible(segment.text);
      if (start + shown.length > MAX_SHOWN) shown = start >= MAX_SHOWN ? "" : `${shown.slice(0, MAX_SHOWN - start)}…`;
      this.segments.push(segment);
      this.starts.push(start);
      text += shown;
    }
    if (text) this.node.appendData(text);
    for (let i = this.starts.length - segments.length; i < this.starts.length; i += 1) this.shade(i);
    this.element.classList.toggle("unknown", this.segments.length > 0 && this.segments.every((segment) => segment.p === null));
  }

  /** @param {number} i @returns {StaticRange | null} */
  rangeOf(i) {
    const startOffset = this.starts[i];
    const endOffset = this.starts[i + 1] ?? this.node.length;
    if (startOffset === undefined || startOffset === endOffset) return null;
    return new StaticRange({ startContainer: this.node, startOffset, endContainer: this.node, endOffset });
  }

  /** @param {number} i */
  shade(i) {
    const level = surprise(/** @type {Segment} */ (this.segments[i]).p);
    const group = level ? highlight(`t${level}`) : null;
    const range = group && this.rangeOf(i);
    if (!range) return;
    group.add(range);
    this.ranges.push([group, range]);
  }

  clear() {
    for (const [group, range] of this.ranges) group.delete(range);
    this.mark(-1);
    this.ranges = [];
    this.starts = [];
    this.segments = [];
    this.node.data = "";
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
    if (!place || place.offsetNode !== this.node) return -1;
    let low = 0;
    let high = this.starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (/** @type {number} */ (this.starts[middle]) <= place.offset) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
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
      it.clear();
      it.node.remove();
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
  return html`<span class="say"><span ref=${place}></span><i class="caret" aria-hidden="true"></i></span>`;
}

