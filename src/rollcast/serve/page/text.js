// Text from a model or a tool, made fit to show: what cannot be seen is made visible, calls are found in it, and much of it is folded.

// What cannot be seen, reorders the text around it, or has no character: controls, formats, surrogates, private and unassigned ones,
// separators of lines and paragraphs, and the letters and marks without ink that rollcast/text.py lists.
const UNSEEN =
  /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0d\uffa0\u{e0100}-\u{e01ef}]/gu;
const KEPT = new Set(["\n", "\t"]);

/**
 * The text with each character that cannot be seen as an escape, such as `\x1b` or `\u202e`. Line breaks and tabs stay.
 * @param {string} text
 */
export function visible(text) {
  return text.replace(UNSEEN, (found) => (KEPT.has(found) ? found : escapeOf(found)));
}

/** @param {string} character */
function escapeOf(character) {
  const point = /** @type {number} */ (character.codePointAt(0));
  if (character === "\r") return "\\r";
  if (point <= 0xff) return `\\x${point.toString(16).padStart(2, "0")}`;
  return point > 0xffff ? `\\U${point.toString(16).padStart(8, "0")}` : `\\u${point.toString(16).padStart(4, "0")}`;
}

/**
 * The text on one line, at most `limit` characters of it, with `…` at the end if it was cut.
 * @param {string} text
 * @param {number} limit
 */
export function oneLine(text, limit) {
  const flat = visible(text.slice(0, 4 * limit).replace(/\s+/g, " ").trim());
  const characters = [...flat];
  if (characters.length <= limit && text.length <= 4 * limit) return flat;
  return `${characters.slice(0, limit - 1).join("")}…`;
}

/**
 * The text on one line without characters that cannot be seen, at most `limit` characters of it: for sentences that quote something.
 * @param {string} text
 * @param {number} limit
 */
export function plainLine(text, limit) {
  const flat = [...text.replace(UNSEEN, " ").replace(/\s+/g, " ").trim()];
  return flat.length <= limit ? flat.join("") : `${flat.slice(0, limit - 1).join("")}…`;
}

// -- calls --------------------------------------------------------------------------------------------------------------

/** @typedef {{kind: "text" | "call" | "thought", text: string, at: number, complete: boolean}} Part `at`: in code units */

const TAGS = [
  { kind: /** @type {const} */ ("call"), open: "<tool_call>", close: "</tool_call>" },
  { kind: /** @type {const} */ ("call"), open: "<function_call>", close: "</function_call>" },
  { kind: /** @type {const} */ ("thought"), open: "<think>", close: "</think>" },
];

/**
 * Divide what a model wrote into text, tool calls and thoughts, as far as it marks them with tags. A part that is still being written is
 * not `complete`. All parts together are the text.
 * @param {string} text
 * @returns {Part[]}
 */
export function splitCalls(text) {
  /** @type {Part[]} */
  const parts = [];
  let at = 0;
  while (at < text.length) {
    const next = nextTag(text, at);
    if (next === null) break;
    if (next.at > at) parts.push({ kind: "text", text: text.slice(at, next.at), at, complete: true });
    const close = text.indexOf(next.tag.close, next.at + next.tag.open.length);
    const end = close < 0 ? text.length : close + next.tag.close.length;
    parts.push({ kind: next.tag.kind, text: text.slice(next.at, end), at: next.at, complete: close >= 0 });
    at = end;
  }
  if (at < text.length) parts.push({ kind: "text", text: text.slice(at), at, complete: true });
  return parts;
}

/**
 * @param {string} text
 * @param {number} from
 */
function nextTag(text, from) {
  let found = null;
  for (const tag of TAGS) {
    const at = text.indexOf(tag.open, from);
    if (at >= 0 && (found === null || at < found.at)) found = { at, tag };
  }
  return found;
}

/**
 * The call as a person writes it, on one line: `guess(number=8)`.
 * @param {string} name
 * @param {unknown} given the arguments, an object or text
 * @param {number} [limit] characters
 */
export function callLine(name, given, limit = 120) {
  const cut = (/** @type {string} */ _, /** @type {unknown} */ value) => (typeof value === "string" ? value.slice(0, 4 * limit) : value);
  const inside =
    typeof given === "object" && given !== null
      ? Object.entries(given).map(([key, value]) => `${key}=${JSON.stringify(value, cut)}`).join(", ")
      : String(given ?? "");
  return oneLine(`${name}(${inside})`, limit);
}

// -- folds ---------------------------------------------------------------------------------------------------------------

/** @typedef {{head: string, hidden: number, hiddenLines: number, tail: string}} Fold `hidden`: characters between head and tail */

/**
 * The beginning and the end of a text that is too long to show at once; `hidden` is 0 if all of it is in `head`.
 * @param {string} text
 * @param {{lines?: number, characters?: number}} [options] how much to show at most, of which a quarter is the end
 * @returns {Fold}
 */
export function fold(text, { lines = 24, characters = 4_000 } = {}) {
  const ends = lineEnds(text, lines + 1);
  if (text.length <= characters && ends.length <= lines) return { head: text, hidden: 0, hiddenLines: 0, tail: "" };
  const headLines = Math.max(Math.floor((lines * 3) / 4), 1);
  const headEnd = whole(text, Math.min(ends[headLines - 1] ?? text.length, Math.floor((characters * 3) / 4)));
  let tailAt = text.length;
  for (let n = 0; n < lines - headLines && tailAt > 0; n += 1) tailAt = text.lastIndexOf("\n", tailAt - 2) + 1;
  tailAt = whole(text, Math.max(tailAt, text.length - Math.floor(characters / 4), headEnd));
  const hidden = text.slice(headEnd, tailAt);
  return { head: text.slice(0, headEnd), hidden: hidden.length, hiddenLines: hidden.split("\n").length - 1, tail: text.slice(tailAt) };
}

/**
 * Where the first lines end, behind their line breaks.
 * @param {string} text
 * @param {number} count
 */
function lineEnds(text, count) {
  const ends = [];
  let at = 0;
  while (ends.length < count && at < text.length) {
    const found = text.indexOf("\n", at);
    at = found < 0 ? text.length : found + 1;
    ends.push(at);
  }
  return ends;
}

/**
 * The place, moved forward if it would divide a character.
 * @param {string} text
 * @param {number} at
 */
function whole(text, at) {
  const unit = text.charCodeAt(at);
  return unit >= 0xdc00 && unit <= 0xdfff ? at + 1 : at;
}
