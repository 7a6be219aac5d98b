// Reads a server's message as a frame, in which each field that the page uses has the type that the protocol says. Pure.

/** @typedef {import("./session.js").Frame} Frame */

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** @param {unknown} value */
const isText = (value) => typeof value === "string";
/** @param {unknown} value */
const isFlag = (value) => typeof value === "boolean";
/** @param {unknown} value */
const isCount = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;
/** @param {(value: unknown) => boolean} isRight @returns {(value: unknown) => boolean} */
const listOf = (isRight) => (value) => Array.isArray(value) && value.every(isRight);
/** @param {unknown} value */
const isSeq = (value) => value === null || (Number.isSafeInteger(value) && /** @type {number} */ (value) >= -1);

/** @param {any} run one that was lost */
const isLost = (run) =>
  isObject(run) && isText(run.run_id) && isText(run.source ?? "") && isText(run.status) && isSeq(run.from_seq ?? null) && isSeq(run.to_seq) && run.to_seq !== null;

/** @type {Record<string, (value: any) => boolean>} */
const FIELDS = {
  type: isText,
  id: isText,
  events: listOf((event) => isObject(event) && isText(/** @type {any} */ (event).event_type)),
  rows: listOf(isObject),
  runs: listOf((run) => isObject(run) && isText(/** @type {any} */ (run).run_id)),
  cursor: isText,
  part: isCount,
  parts: isCount,
  scopes: listOf(isText),
  features: listOf(isText),
  limits: isObject,
  heartbeat_s: (value) => typeof value === "number" && value > 0 && value < 86_400,
  total: isCount,
  next: isText,
  changed: isFlag,
  chains: listOf(isText),
  missing: listOf(isText),
  ending: isCount,
  not_begun: isCount,
  over: isCount,
  code: isCount,
  message: isText,
  recovered: isFlag,
  began_anew: isFlag,
  lost: listOf(isLost),
  lost_more: isCount,
};

/**
 * The frame in a message; null if there is none. A field with a value of a wrong type is left out, like one that is null.
 * @param {string} message
 * @returns {Frame | null}
 */
export function frameOf(message) {
  /** @type {any} */
  let given;
  try {
    given = JSON.parse(message);
  } catch {
    return null;
  }
  if (!isObject(given) || !isText(given.type)) return null;
  /** @type {Frame} */
  const frame = { type: given.type };
  for (const name of Object.keys(given)) {
    const isRight = Object.hasOwn(FIELDS, name) ? FIELDS[name] : undefined;
    if (isRight === undefined ? name !== "__proto__" : isRight(given[name])) frame[name] = given[name];
  }
  return frame;
}
