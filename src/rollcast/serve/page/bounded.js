// Turns any value into bounded, plain JSON, as rollcast/records/bounded.py does. Characters are Unicode code points.

const MAX_WHOLE = 2 ** 53 - 1;
const MAX_WORD = 1024; // characters in a name or an id
const MAX_DEPTH = 32; // levels of nested lists and objects
const PIECES = 1024; // pieces of a growing text, until they are joined
const SURROGATE = /[\ud800-\udfff]/;

/**
 * The value if it is a whole number that a double holds exactly, else null.
 * @param {unknown} value
 * @returns {number | null}
 */
export function whole(value) {
  return typeof value === "number" && Number.isInteger(value) && Math.abs(value) <= MAX_WHOLE ? value + 0 : null;
}

/**
 * The value if it is a finite number, else null.
 * @param {unknown} value
 * @returns {number | null}
 */
export function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/**
 * The text with lone surrogates replaced one by one, so that its length in characters stays.
 * @param {string} text
 */
export function clean(text) {
  if (!SURROGATE.test(text)) return text;
  return text.replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, (found) => (found.length === 2 ? found : "\ufffd"));
}

/**
 * How many characters the text has.
 * @param {string} text
 */
export function length(text) {
  if (!SURROGATE.test(text)) return text.length;
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

/**
 * The characters of the text from `start` up to `end`.
 * @param {string} text
 * @param {number} start
 * @param {number} [end]
 */
export function slice(text, start, end) {
  if (!SURROGATE.test(text)) return text.slice(start, end);
  const first = unitAt(text, start);
  return text.slice(first, end === undefined ? undefined : unitAt(text, end));
}

/**
 * Where character `at` begins, in code units.
 * @param {string} text
 * @param {number} at
 */
function unitAt(text, at) {
  let unit = 0;
  for (let i = 0; i < at && unit < text.length; i += 1) {
    unit += /** @type {number} */ (text.codePointAt(unit)) > 0xffff ? 2 : 1;
  }
  return unit;
}

/**
 * The value if it is text, at most 1,024 characters of it, else null.
 * @param {unknown} value
 * @returns {string | null}
 */
export function word(value) {
  return typeof value === "string" ? clean(slice(value, 0, MAX_WORD)) : null;
}

/**
 * The last `limit` characters, and how many came before them.
 * @param {string} text
 * @param {number} limit
 * @returns {[string, number]}
 */
export function tailOf(text, limit) {
  if (text.length <= limit) return [clean(text), 0];
  const omitted = Math.max(length(text) - limit, 0);
  return [clean(slice(text, omitted)), omitted];
}

/**
 * Whether the value is a JSON object.
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The object's own value of that name; undefined if it has none.
 * @param {Record<string, unknown>} object
 * @param {string} name
 */
export function own(object, name) {
  return Object.hasOwn(object, name) ? object[name] : undefined;
}

class TooMuch extends Error {}

/**
 * A copy as plain JSON, and true; or null and false if it is heavier than `limit`, or nested deeper than `depth`.
 * @param {unknown} value
 * @param {number} limit
 * @param {number} [depth]
 * @returns {[any, boolean]}
 */
export function plain(value, limit, depth = MAX_DEPTH) {
  try {
    return [copied(value, { left: limit }, depth), true];
  } catch (error) {
    if (error instanceof TooMuch) return [null, false];
    throw error;
  }
}

/**
 * @param {unknown} value
 * @param {{left: number}} room
 * @param {number} depth
 * @returns {any}
 */
function copied(value, room, depth) {
  take(room, 1);
  if (typeof value === "string") {
    take(room, length(value));
    return clean(value);
  }
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value;
  if (typeof value !== "object" || value === null) return null;
  if (depth === 0) throw new TooMuch();
  if (Array.isArray(value)) return value.map((item) => copied(item, room, depth - 1));
  /** @type {Record<string, unknown>} */
  const copy = Object.create(null); // so that the name `__proto__` is a name as any other
  for (const [name, item] of Object.entries(value)) {
    take(room, length(name));
    copy[clean(name)] = copied(item, room, depth - 1);
  }
  return copy;
}

/**
 * @param {{left: number}} room
 * @param {number} weight
 */
function take(room, weight) {
  room.left -= weight;
  if (room.left < 0) throw new TooMuch();
}

/**
 * The weight of plain JSON: one for each value, and one for each character in its texts and names.
 * @param {unknown} value
 * @returns {number}
 */
export function weight(value) {
  if (typeof value === "string") return 1 + length(value);
  if (typeof value !== "object" || value === null) return 1;
  let sum = 1;
  if (Array.isArray(value)) {
    for (const item of value) sum += weight(item);
  } else {
    for (const [name, item] of Object.entries(value)) sum += length(name) + weight(item);
  }
  return sum;
}

/** A text that grows at its end, of which the last `limit` characters are kept. Growing does not copy the whole text. */
export class Tail {
  /**
   * @param {number} limit how many characters to keep
   * @param {number} [start] how many characters came before
   */
  constructor(limit, start = 0) {
    this.limit = limit;
    this.start = start; // how many characters came before the pieces
    this.end = start; // how many characters the text has so far
    /** @type {string[]} */
    this.pieces = []; // what is kept; sometimes more than `limit`
    /** @type {number[]} */
    this.sizes = []; // of the pieces, in characters
  }

  /**
   * A tail of the text, with `omitted` unknown characters before it.
   * @param {string} text
   * @param {number} limit
   */
  static of(text, limit, omitted = 0) {
    const tail = new Tail(limit, omitted);
    if (text) tail.append(text);
    return tail;
  }

  /**
   * Add text at the end.
   * @param {string} text
   */
  append(text) {
    const size = length(text);
    this.pieces.push(clean(text));
    this.sizes.push(size);
    this.end += size;
    if (this.pieces.length >= PIECES || this.end - this.start > 2 * this.limit) this.shrink();
  }

  /**
   * Go on after a gap, from character `at`: what is kept is one piece of the text, without gaps.
   * @param {number} at
   */
  restart(at) {
    this.pieces = [];
    this.sizes = [];
    this.start = this.end = at;
  }

  /** Join the pieces, and drop what comes before the last `limit` characters. */
  shrink() {
    const [text, omitted] = tailOf(this.pieces.join(""), this.limit);
    this.start += omitted;
    this.pieces = text ? [text] : [];
    this.sizes = text ? [this.end - this.start] : [];
  }

  /** The last `limit` characters, or as many as are known; `omitted` came before them. */
  get text() {
    if (this.pieces.length !== 1 || this.end - this.start > this.limit) this.shrink();
    return this.pieces[0] ?? "";
  }

  /** How many characters came before `text`. */
  get omitted() {
    return Math.max(this.start, this.end - this.limit);
  }

  /**
   * What came after the first `at` characters, for a reader that has shown those; null if some of it is no longer kept, so that the
   * reader has to begin anew with `text`. It joins no more than what is new.
   * @param {number} at
   * @returns {string | null}
   */
  after(at) {
    if (at > this.end || at < this.start) return null;
    let i = this.pieces.length;
    let from = this.end;
    while (i > 0 && from > at) {
      i -= 1;
      from -= this.sizes[i] ?? 0;
    }
    const text = this.pieces.slice(i).join("");
    return from < at ? slice(text, at - from) : text;
  }
}
