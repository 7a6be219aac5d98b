// The text of a generation while it is written: one Text node, to which what is new is appended once a frame. What a token's probability
// was is shown by the CSS Custom Highlight API, so that no element is made for a token.

import { html, useEffect, useLayoutEffect, usePage, useRef } from "../ui.js";
import { visible } from "../text.js";
import { bucketOf } from "../tokens.js";

const SCALE = { top: -Math.log(0.05) }; // the same on every page, so that colours can be compared
const HIGHEST = 6;
const MAX_SHOWN = 120_000; // UTF-16 units of one text

const canHighlight = typeof Highlight === "function" && typeof CSS !== "undefined" && "highlights" in CSS;

/** @param {string} name @returns {Highlight | null} */
function highlight(name) {
  if (!canHighlight) return null;
  let found = CSS.highlights.get(name);
  if (!found) CSS.highlights.set(name, (found = new Highlight()));
  return found;
}

/**
 * How surprising a probability is, from 0 to 6; null if it is not known.
 * @param {number | null} p
 */
export function surprise(p) {
  if (p === null) return null;
  return Math.min(bucketOf(Math.log(Math.max(p, 1e-300)), SCALE) ?? 0, HIGHEST);
}

/** Draws the tokens of one turn into an element. */
class Drawn {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.node = document.createTextNode("");
    element.append(this.node);
    /** @type {number[]} where each token begins in what is shown */
    this.starts = [];
    /** @type {import("../transcript.js").Token[] | null} */
    this.tokens = null;
    this.edition = -1;
    /** @type {[Highlight, AbstractRange][]} */
    this.ranges = [];
    this.known = false;
    /** @type {StaticRange | null} */
    this.marked = null;
  }

  /** @param {import("../transcript.js").Turn} turn */
  draw(turn) {
    const tokens = turn.tokens;
    if (this.edition !== turn.edition || (this.tokens !== null && this.tokens !== tokens)) this.clear();
    this.edition = turn.edition;
    this.tokens = tokens;
    let text = "";
    let length = this.node.length;
    for (let i = this.starts.length; i < tokens.length; i += 1) {
      const token = /** @type {import("../transcript.js").Token} */ (tokens[i]);
      if (length > MAX_SHOWN) break;
      let shown = visible(token.text);
      if (length + shown.length > MAX_SHOWN) shown = `${shown.slice(0, MAX_SHOWN - length)}…`;
      this.starts.push(length);
      text += shown;
      length += shown.length;
      if (token.p !== null) this.known = true;
    }
    if (text) {
      const from = this.node.length;
      this.node.appendData(text);
      for (let i = 0; i < this.starts.length; i += 1) {
        const start = /** @type {number} */ (this.starts[i]);
        if (start < from) continue;
        this.shade(/** @type {import("../transcript.js").Token} */ (tokens[i]), start, this.starts[i + 1] ?? length);
      }
    }
    this.element.classList.toggle("unknown", !this.known && this.starts.length > 0);
  }

  /** @param {import("../transcript.js").Token} token @param {number} from @param {number} to */
  shade(token, from, to) {
    const level = surprise(token.p);
    if (!level || from === to) return;
    const group = highlight(`t${level}`);
    if (!group) return;
    const range = new StaticRange({ startContainer: this.node, startOffset: from, endContainer: this.node, endOffset: to });
    group.add(range);
    this.ranges.push([group, range]);
  }

  clear() {
    for (const [group, range] of this.ranges) group.delete(range);
    this.ranges = [];
    this.starts = [];
    this.node.data = "";
    this.known = false;
    this.mark(-1);
  }

  /** Mark the token that facts are shown of. @param {number} index */
  mark(index) {
    const group = highlight("token");
    if (this.marked) group?.delete(this.marked);
    this.marked = null;
    const from = this.starts[index];
    if (from === undefined || !group) return;
    const to = this.starts[index + 1] ?? this.node.length;
    this.marked = new StaticRange({ startContainer: this.node, startOffset: from, endContainer: this.node, endOffset: to });
    group.priority = 9;
    group.add(this.marked);
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
 * The tokens of a turn. Arrow keys, or a pointer, choose one; `onToken` is told which.
 * @param {{story: import("../data.js").Story, turn: import("../transcript.js").Turn, label: string,
 *   onToken?: (token: import("../transcript.js").Token | null, turn: import("../transcript.js").Turn) => void}} props
 */
export function TokenText({ story, turn, label, onToken }) {
  const { data } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const drawn = useRef(/** @type {Drawn | null} */ (null));
  const chosen = useRef(-1);
  const { run, chain } = story.transcript;
  useLayoutEffect(() => {
    const it = new Drawn(/** @type {HTMLElement} */ (place.current));
    drawn.current = it;
    const draw = () => it.draw(turn);
    draw();
    const end = data.listen(`story:${run}/${chain}`, draw);
    return () => {
      end();
      it.clear();
      it.node.remove();
    };
  }, [data, turn, run, chain]);

  const choose = (/** @type {number} */ index) => {
    const it = /** @type {Drawn} */ (drawn.current);
    chosen.current = index;
    it.mark(index);
    onToken?.(it.tokens?.[index] ?? null, turn);
  };
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    const last = (drawn.current?.starts.length ?? 0) - 1;
    const next = {
      ArrowRight: chosen.current + 1, ArrowLeft: chosen.current - 1, Home: 0, End: last,
    }[event.key]; // prettier-ignore
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(Math.min(Math.max(next, 0), last));
  };
  const onPointer = (/** @type {PointerEvent} */ event) => {
    const index = drawn.current?.at(event.clientX, event.clientY) ?? -1;
    if (index >= 0 && index !== chosen.current) choose(index);
  };
  const interactive = Boolean(onToken);
  return html`<div
    class="tokens"
    ref=${place}
    role=${interactive ? "group" : undefined}
    tabindex=${interactive ? 0 : undefined}
    aria-label=${interactive ? label : undefined}
    onKeyDown=${interactive ? onKeyDown : undefined}
    onPointerMove=${interactive ? onPointer : undefined}
    onPointerDown=${interactive ? onPointer : undefined}
    onFocus=${interactive ? () => choose(Math.max(chosen.current, 0)) : undefined}
    onBlur=${interactive ? () => drawn.current?.mark(-1) : undefined}
  ></div>`;
}

/**
 * The end of a turn's text while it is written, on a line.
 * @param {{story: import("../data.js").Story, turn: import("../transcript.js").Turn, length?: number}} props
 */
export function TokenTail({ story, turn, length = 28 }) {
  const { data } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const { run, chain } = story.transcript;
  useEffect(() => {
    const node = document.createTextNode("");
    /** @type {HTMLElement} */ (place.current).append(node);
    const draw = () => {
      const text = visible(turn.text.slice(-4 * length)).replace(/\s+/g, " ");
      node.data = text.slice(-length);
    };
    draw();
    const end = data.listen(`story:${run}/${chain}`, draw);
    return () => {
      end();
      node.remove();
    };
  }, [data, turn, run, chain, length]);
  return html`<span class="say"><span ref=${place}></span><i class="caret" aria-hidden="true"></i></span>`;
}
