// The conversation of a chain as turns: one generation, and the tool calls that it asked for.

import { callLine } from "./text.js";
import { textOf } from "./view_parts.js";

/** @typedef {import("./chain_view.js").ChainView} ChainView */
/** @typedef {import("./view_parts.js").Message} Message */
/** @typedef {import("./bounded.js").Tail} Tail */

/**
 * A tool call of a turn.
 * @typedef {object} Call
 * @property {string} id
 * @property {string} name
 * @property {unknown} arguments an object, or the raw text if it is no valid JSON
 * @property {string} line the call on one line, such as `guess(number=8)`
 * @property {string | null} output null if there is none yet
 * @property {number} omitted characters of the output before what is kept
 * @property {string | null} status `success`, `error`, `timeout`, `cancelled`; null if that was not seen
 * @property {number | null} durationS
 * @property {number | null} startedAt seconds since the epoch; of open calls only
 * @property {boolean} open whether its end was not seen and may come
 */

/**
 * A turn of the model.
 * @typedef {object} Turn
 * @property {"turn"} kind
 * @property {number | null} step
 * @property {string} text all that it wrote, calls included as it wrote them
 * @property {number} omitted characters before what is kept of it
 * @property {string | null} reasoning what the server sent apart
 * @property {string | null} finishReason
 * @property {Call[]} calls
 * @property {boolean} open whether it is being generated, or a call of it runs
 * @property {Tail | null} tail of the open generation; read it with `after`
 * @property {number} first how many messages of the chain come before it
 */

/**
 * A message that the model did not write: the prompt, or one that came from outside later.
 * @typedef {{kind: "message", role: string, text: string, prompt: boolean, first: number}} PlainMessage
 */

/** @typedef {Turn | PlainMessage} Item */

/**
 * The conversation, in order. Do not change the list.
 * @param {ChainView} view
 * @returns {readonly Item[]}
 */
export function itemsOf(view) {
  const closed = closedItems(view);
  if (view.generation === null && !view.toolCalls.size) return closed;
  const items = [...closed];
  addOpen(items, view);
  return items;
}

/**
 * Only the turns.
 * @param {ChainView} view
 * @returns {Turn[]}
 */
export function turnsOf(view) {
  return itemsOf(view).filter((item) => item.kind === "turn");
}

/**
 * What is over of a conversation, as it was made last: `ends` has how many messages each item and those before it take.
 * @type {WeakMap<ChainView, {messages: Message[], promptLength: number, omitted: number, items: Item[], ends: number[]}>}
 */
const CLOSED = new WeakMap();

/**
 * Items of the messages. Those of messages that have not changed are as before, so a long conversation is not made anew for each message.
 * @param {ChainView} view
 * @returns {readonly Item[]}
 */
function closedItems(view) {
  const { messages } = view;
  const promptLength = view.conversation.promptLength ?? 0;
  const { omitted } = view.conversation;
  const before = CLOSED.get(view);
  /** @type {Item[]} */
  let items = [];
  /** @type {number[]} */
  let ends = [];
  if (before !== undefined && before.promptLength === promptLength && before.omitted === omitted) {
    let same = 0;
    while (same < messages.length && messages[same] === before.messages[same]) same += 1;
    if (same === messages.length && same === before.messages.length) return before.items;
    // The last item that has not changed may go on: a tool's answer may follow.
    let kept = before.ends.findIndex((end) => end > same);
    kept = Math.max((kept < 0 ? before.ends.length : kept) - 1, 0);
    items = before.items.slice(0, kept);
    ends = before.ends.slice(0, kept);
  }
  for (let i = ends.at(-1) ?? 0; i < messages.length; i += 1) {
    const message = /** @type {Message} */ (messages[i]);
    const role = textOf(message.role);
    const first = omitted + i;
    if (i < promptLength || role !== "assistant") {
      items.push({ kind: "message", role, text: contentOf(message), prompt: i < promptLength, first });
    } else {
      const answers = [];
      while (messages[i + 1]?.role === "tool") answers.push(/** @type {Message} */ (messages[(i += 1)]));
      items.push(closedTurn(message, answers, first));
    }
    ends.push(i + 1);
  }
  CLOSED.set(view, { messages: [...messages], promptLength, omitted, items, ends });
  return items;
}

/**
 * Turns that were made before, by their assistant's message. A message is replaced and never changed, so they stay true.
 * @type {WeakMap<Message, {answers: Message[], turn: Turn}>}
 */
const MADE = new WeakMap();

/**
 * @param {Message} message an assistant's
 * @param {Message[]} answers of its tools
 * @param {number} first
 * @returns {Turn} do not change it
 */
function closedTurn(message, answers, first) {
  const made = MADE.get(message);
  if (made && made.answers.length === answers.length && made.answers.every((each, i) => each === answers[i])) return made.turn;
  const turn = turnOf(message);
  turn.first = first;
  for (const each of answers) answer(turn, each);
  MADE.set(message, { answers, turn });
  return turn;
}

/**
 * What is still open: the generation, or the calls of the last turn.
 * @param {Item[]} items
 * @param {ChainView} view
 */
function addOpen(items, view) {
  const first = view.conversation.omitted + view.messages.length;
  if (view.generation !== null) {
    items.push({
      kind: "turn",
      step: view.fields.generation_step,
      text: view.generation.text,
      omitted: view.generation.omitted,
      reasoning: view.reasoning === null ? null : view.reasoning.text,
      finishReason: null,
      calls: [],
      open: true,
      tail: view.generation,
      first,
    });
  }
  if (!view.toolCalls.size) return;
  const last = lastTurn(items);
  const turn = last === null ? emptyTurn(view.fields.step, first) : { ...last, calls: [...last.calls] };
  if (last !== null) items.pop();
  items.push(turn);
  turn.open = true;
  for (const call of view.toolCalls.values()) {
    const found = {
      id: call.callId,
      name: call.toolName,
      arguments: call.arguments,
      line: callLine(call.toolName, call.arguments),
      output: call.output.end || call.status !== null ? call.output.text : null,
      omitted: call.output.omitted,
      status: call.status,
      durationS: null,
      startedAt: call.startedAt,
      open: true,
    };
    const listed = turn.calls.findIndex((each) => each.id === call.callId && each.output === null);
    if (listed >= 0) turn.calls[listed] = found;
    else turn.calls.push(found);
  }
}

/** @param {number | null} step @param {number} first @returns {Turn} */
function emptyTurn(step, first) {
  return { kind: "turn", step, text: "", omitted: 0, reasoning: null, finishReason: null, calls: [], open: false, tail: null, first };
}

/** @param {Item[]} items @returns {Turn | null} the last item, if it is a turn */
function lastTurn(items) {
  const last = items.at(-1);
  return last?.kind === "turn" ? last : null;
}

/** @param {Message} message @returns {Turn} */
function turnOf(message) {
  const calls = Array.isArray(message.tool_calls) ? message.tool_calls : [];
  return {
    ...emptyTurn(typeof message.step === "number" ? message.step : null, 0),
    text: contentOf(message),
    omitted: typeof message.omitted === "number" ? message.omitted : 0,
    reasoning: typeof message.reasoning === "string" ? message.reasoning : null,
    finishReason: typeof message.finish_reason === "string" ? message.finish_reason : null,
    calls: calls.filter((each) => typeof each === "object" && each !== null).map(listedCall),
  };
}

/** @param {Record<string, any>} listed @returns {Call} */
function listedCall(listed) {
  const name = textOf(listed.function?.name);
  const given = listed.function?.arguments ?? "";
  return {
    id: textOf(listed.id),
    name,
    arguments: given,
    line: callLine(name, given),
    output: null,
    omitted: 0,
    status: null,
    durationS: null,
    startedAt: null,
    open: false,
  };
}

/**
 * A tool's message answers a call of its turn.
 * @param {Turn} turn
 * @param {Message} message
 */
function answer(turn, message) {
  const id = textOf(message.tool_call_id);
  let call = turn.calls.find((each) => each.id === id && each.output === null && each.status === null);
  if (call === undefined) {
    call = listedCall({ id, function: { name: textOf(message.name) } });
    turn.calls.push(call);
  }
  call.output = message.content === null || message.content === undefined ? null : contentOf(message);
  call.omitted = typeof message.omitted === "number" ? message.omitted : 0;
  call.status = typeof message.status === "string" ? message.status : null;
  call.durationS = typeof message.duration_s === "number" ? message.duration_s : null;
}

/**
 * The text of a message. Parts that are not text are written as JSON.
 * @param {Message} message
 */
export function contentOf(message) {
  const { content } = message;
  if (typeof content === "string") return content;
  if (content === null || content === undefined) return "";
  if (!Array.isArray(content)) return JSON.stringify(content);
  return content.map((part) => (typeof part?.text === "string" ? part.text : JSON.stringify(part))).join("\n");
}

/**
 * What is said of a failed call beside its result: its status, unless the result begins with that; null if it did not fail.
 * @param {Pick<Call, "status" | "output">} call
 * @returns {string | null}
 */
export function failureOf({ status, output }) {
  if (status !== "error" && status !== "timeout" && status !== "cancelled") return null;
  return output?.trimStart().toLowerCase().startsWith(status) ? "" : status;
}
