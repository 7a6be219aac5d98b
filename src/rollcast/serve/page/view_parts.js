// The parts of a chain's view, as in rollcast/records/view_parts.py: bounded plain JSON, read back whatever it contains.

import { clean, isObject, number, plain, slice, Tail, tailOf, weight, whole, word } from "./bounded.js";

export const MAX_TEXT = 262_144; // characters of a message, a generation, an answer
export const MAX_OUTPUT = 65_536; // characters of a tool call's output, of its arguments, of reasoning
const MAX_MESSAGES = 1_024;
const MAX_WEIGHT = 1_048_576; // weight of all messages together
export const MAX_CALLS = 128; // calls that are open at once, or that one message lists
export const MAX_TOOLS = 128; // tool names that are counted apart, or listed
export const MAX_REWARDS = 256; // the latest ones are kept
const MAX_ERROR = 2_048; // characters
const MAX_SMALL = 8_192; // weight of metrics or of a reference
const OTHER_TOOLS = "(others)"; // the name under which tools beyond the first 128 count
const CALL_DEPTH = 24; // nesting of arguments; less than that of the message that lists their call
const MAX_COUNT = 2 ** 40;
const MAX_SECONDS = 1e11;

/** @typedef {"unknown" | "waiting" | "generating" | "tool" | "scoring" | "ended" | "lost"} ChainState */
/** @typedef {Record<string, any>} Message a message of a conversation: `role`, `content`, and what `ChainView` says */
/** @typedef {{seconds: number, stays: number, longest: number}} StateTime how long a chain was in a state, in seconds */
/** @typedef {{calls: number, failed: number, seconds: number}} ToolUse totals of one tool's ended calls */

/** @type {ReadonlySet<string>} */
export const STATES = new Set(["unknown", "waiting", "generating", "tool", "scoring", "ended", "lost"]);

/** The value if it can be a count, otherwise null. @param {unknown} value */
export function countOf(value) {
  const found = whole(value);
  return found !== null && found >= 0 && found <= MAX_COUNT ? found : null;
}

/** The value if it can be a duration in seconds, otherwise null. @param {unknown} value */
export function secondsOf(value) {
  const found = number(value);
  return found !== null && found >= 0 && found <= MAX_SECONDS ? found : null;
}

/** The value if it can be a sum of counts, otherwise 0. @param {unknown} value */
export function totalOf(value) {
  return Math.max(whole(value) ?? 0, 0);
}

/** The value if it can be a sum of durations, otherwise 0. @param {unknown} value */
export function totalSecondsOf(value) {
  return Math.max(number(value) ?? 0, 0);
}

/** The value if it can be a `seq`, otherwise -1. @param {unknown} value */
export function seqOf(value) {
  const found = whole(value);
  return found === null ? -1 : Math.max(found, -1);
}

/**
 * The value if it can be a seed, else null. Seeds beyond 2^53 are those of the double that JSON made of them.
 * @param {unknown} value
 */
export function seedOf(value) {
  return typeof value === "number" && Number.isInteger(value) && value >= -(2 ** 63) && value < 2 ** 63 ? value : null;
}

/** The value if it can be a timestamp, otherwise null. @param {unknown} value */
export function moment(value) {
  const found = number(value);
  return found !== null && Math.abs(found) < MAX_SECONDS ? found : null;
}

/** The value if it is text, otherwise an empty text. @param {unknown} value */
export function textOf(value) {
  return typeof value === "string" ? value : "";
}

/** The texts in a list, at most 128; null if it is not a list. @param {unknown} value */
export function words(value) {
  if (!Array.isArray(value)) return null;
  return value.slice(0, MAX_TOOLS).map(word).filter((found) => found !== null);
}

/** A copy as plain JSON if it is not too heavy, otherwise null. @param {unknown} value */
export function small(value) {
  return plain(value, MAX_SMALL)[0];
}

/** The value if it is an object, otherwise an empty object. @param {unknown} value @returns {Record<string, any>} */
export function objectOf(value) {
  return isObject(value) ? value : {};
}

/**
 * The arguments of a tool call, an object or text, and false; or "" and true if they are too heavy to keep.
 * @param {unknown} value
 * @returns {[Record<string, any> | string, boolean]}
 */
function argumentsOf(value) {
  const [copy, kept] = plain(value, MAX_OUTPUT, CALL_DEPTH);
  return [isObject(copy) || typeof copy === "string" ? copy : "", !kept];
}

/** @param {unknown} value @returns {StateTime} */
export function stateTimeOf(value) {
  const given = objectOf(value);
  return { seconds: totalSecondsOf(given.seconds), stays: totalOf(given.stays), longest: totalSecondsOf(given.longest) };
}

/** @param {unknown} value @returns {ToolUse} */
export function toolUseOf(value) {
  const given = objectOf(value);
  return { calls: totalOf(given.calls), failed: totalOf(given.failed), seconds: totalSecondsOf(given.seconds) };
}

/**
 * Count an ended call. Tools beyond the first 128 names count as one.
 * @param {Map<string, ToolUse>} byTool
 * @param {string} name
 * @param {string | null} status
 * @param {number | null} durationS
 */
export function countUse(byTool, name, status, durationS) {
  const counted = !byTool.has(name) && byTool.size >= MAX_TOOLS ? OTHER_TOOLS : name;
  let use = byTool.get(counted);
  if (use === undefined) byTool.set(counted, (use = { calls: 0, failed: 0, seconds: 0 }));
  use.calls += 1;
  use.failed += status === "error" || status === "timeout" ? 1 : 0;
  use.seconds += durationS ?? 0;
}

/** A tool call whose end was not seen. */
export class OpenCall {
  /**
   * @param {Record<string, unknown>} value its fields, as a view as plain JSON has them or as an event has them
   */
  constructor(value) {
    const [given, tooHeavy] = argumentsOf(value.arguments);
    this.callId = word(value.call_id) ?? "";
    this.toolName = word(value.tool_name) ?? "";
    this.output = Tail.of(textOf(value.observation), MAX_OUTPUT, totalOf(value.omitted));
    this.arguments = given; // an object or text; "" with `argumentsOmitted` if they were too heavy
    this.argumentsOmitted = tooHeavy || value.arguments_omitted === true;
    this.step = whole(value.step);
    this.startedAt = moment(value.started_at); // null if its start was not seen
    this.status = word(value.status); // of its final observation, null before that
  }
}

/** Messages, at most 1,024 with a total weight of 1,048,576; the oldest after the prompt are dropped first. */
export class Conversation {
  constructor(omitted = 0) {
    /** @type {Message[]} a message is replaced, never changed in place */
    this.messages = [];
    /** @type {number[]} */
    this.weights = [];
    this.weight = 0;
    /** @type {number | null} how many messages are the prompt; null if that is not known */
    this.promptLength = null;
    this.omitted = omitted; // how many were dropped, or were not messages
  }

  /**
   * A conversation from a list, which may contain anything.
   * @param {unknown} messages
   * @param {number | null} [promptLength]
   * @param {number} [omitted]
   */
  static of(messages, promptLength = null, omitted = 0) {
    const conversation = new Conversation(omitted);
    for (const [i, message] of (Array.isArray(messages) ? messages : []).entries()) {
      if (i === promptLength) conversation.promptLength = conversation.messages.length;
      conversation.take(message);
    }
    if (promptLength !== null && conversation.promptLength === null) {
      conversation.promptLength = conversation.messages.length;
    }
    return conversation;
  }

  /**
   * Add a message, which may be anything.
   * @param {unknown} message
   */
  take(message) {
    if (!isObject(message)) {
      this.omitted += 1;
      return;
    }
    const others = Object.fromEntries(Object.entries(message).filter(([name]) => name !== "content"));
    let [rest, kept] = plain(others, MAX_WEIGHT);
    if (!kept) {
      rest = Object.create(null);
      for (const name of ["role", "tool_call_id", "name"]) {
        if (Object.hasOwn(message, name)) rest[name] = word(message[name]);
      }
      rest.omitted = -1;
    }
    let content = /** @type {any} */ (message.content ?? null);
    let cut = 0;
    if (typeof content === "string") {
      [content, cut] = tailOf(content, MAX_TEXT);
    } else if (content !== null) {
      [content, kept] = plain(content, MAX_TEXT);
      cut = kept ? 0 : -1;
    }
    if (cut) {
      const before = whole(rest.omitted) ?? 0;
      rest.omitted = Math.min(cut, before) < 0 ? -1 : before + cut;
    }
    const role = rest.role ?? null;
    delete rest.role;
    this.add(Object.assign(Object.create(null), { role, content }, rest));
  }

  /**
   * Add a message that is plain and bounded.
   * @param {Message} message
   */
  add(message) {
    const added = weight(message);
    this.messages.push(message);
    this.weights.push(added);
    this.weight += added;
    this.bound();
  }

  /**
   * Put another message in the place of message `i`.
   * @param {number} i
   * @param {Message} message
   */
  replace(i, message) {
    const now = weight(message);
    this.messages[i] = message;
    this.weight += now - (this.weights[i] ?? 0);
    this.weights[i] = now;
    this.bound();
  }

  bound() {
    while (this.messages.length > 1 && (this.messages.length > MAX_MESSAGES || this.weight > MAX_WEIGHT)) {
      let kept = this.promptLength ?? 0;
      const promptWeight = this.weights.slice(0, kept).reduce((sum, each) => sum + each, 0);
      if (kept > MAX_MESSAGES / 2 || kept === this.messages.length || promptWeight > MAX_WEIGHT / 2) {
        kept = 0;
        this.promptLength = this.promptLength === null ? null : this.promptLength - 1;
      }
      this.messages.splice(kept, 1);
      this.weight -= this.weights.splice(kept, 1)[0] ?? 0;
      this.omitted += 1;
    }
  }

  /**
   * List a call in this turn's assistant message; if there is none, one without text is added.
   * @param {OpenCall} call
   */
  listCall(call) {
    const listed = { id: call.callId, type: "function", function: { name: call.toolName, arguments: call.arguments } };
    const i = this.turnBegins();
    const message = i === null ? undefined : this.messages[i];
    if (i === null || message === undefined) {
      this.add({ role: "assistant", content: null, tool_calls: [listed], step: call.step });
      return;
    }
    const calls = Array.isArray(message.tool_calls) ? message.tool_calls : [];
    const known = calls.some((each) => isObject(each) && each.id === call.callId);
    const room = calls.length < MAX_CALLS && (this.weights[i] ?? 0) + weight(listed) <= MAX_WEIGHT / 2;
    if (room && !known) {
      this.replace(i, Object.assign(Object.create(null), message, { tool_calls: [...calls, listed] }));
    }
  }

  /**
   * Whether this turn has a tool's answer to that call.
   * @param {string} callId
   */
  answers(callId) {
    for (let i = this.messages.length - 1; i >= 0; i -= 1) {
      const message = this.messages[i];
      if (message?.role !== "tool") return false;
      if (message.tool_call_id === callId) return true;
    }
    return false;
  }

  /** @returns {number | null} */
  turnBegins() {
    for (let i = this.messages.length - 1; i >= (this.promptLength ?? 0); i -= 1) {
      const role = this.messages[i]?.role;
      if (role !== "tool") return role === "assistant" ? i : null;
    }
    return null;
  }
}

/**
 * An assistant's message with the generated text.
 * @param {Tail | string} text
 * @param {string | null} finishReason
 * @param {number | null} step
 * @returns {Message}
 */
export function generated(text, finishReason, step) {
  const [kept, omitted] = text instanceof Tail ? [text.text, text.omitted] : tailOf(text, MAX_TEXT);
  return { role: "assistant", content: kept, ...(omitted ? { omitted } : {}), finish_reason: finishReason, step };
}

/**
 * A tool's message with a call's output; `content` is null if no output was seen.
 * @param {OpenCall} call
 * @param {string | null} status
 * @param {number | null} durationS
 * @returns {Message}
 */
export function answered(call, status, durationS) {
  const output = call.output;
  return {
    role: "tool",
    content: output.end || call.status !== null ? output.text : null,
    tool_call_id: call.callId,
    name: call.toolName,
    ...(output.omitted ? { omitted: output.omitted } : {}),
    status,
    duration_s: durationS,
    step: call.step,
  };
}

/**
 * The fields of an `error` event, with its text cut at 2,048 characters; null if it is not an object.
 * @param {unknown} value
 * @returns {{error: string, error_type: string | null, where: string | null} | null}
 */
export function errorOf(value) {
  if (!isObject(value)) return null;
  return {
    error: clean(slice(textOf(value.error), 0, MAX_ERROR)),
    error_type: word(value.error_type),
    where: word(value.where),
  };
}
