// `ChainView`: what a watcher knows about one chain from the events that reached it; the twin of rollcast/records/view.py.
//
// `apply` takes any event in any order and never throws. What is not known is marked (`joinedLate`, `gaps`, `omitted`) and never
// guessed. Memory is bounded as in Python, and the recorded cases in tests/records/view_cases give the same result in both.

import { clean, length, number, own, slice, Tail, tailOf, whole, word } from "./bounded.js";
import {
  answered,
  Conversation,
  countOf,
  countUse,
  errorOf,
  generated,
  MAX_CALLS,
  MAX_OUTPUT,
  MAX_REWARDS,
  MAX_TEXT,
  MAX_TOOLS,
  moment,
  objectOf,
  OpenCall,
  secondsOf,
  seedOf,
  seqOf,
  small,
  STATES,
  stateTimeOf,
  textOf,
  toolUseOf,
  totalOf,
  totalSecondsOf,
  words,
} from "./view_parts.js";

/** @typedef {import("./view_parts.js").ChainState} ChainState */
/** @typedef {import("./view_parts.js").Message} Message */
/** @typedef {import("./view_parts.js").StateTime} StateTime */
/** @typedef {import("./view_parts.js").ToolUse} ToolUse */

/**
 * An event as it comes over the wire. Any of it may be of another shape if the event was made by hand.
 * @typedef {object} StreamEvent
 * @property {string} event_type
 * @property {string} chain_id
 * @property {number} timestamp seconds since the epoch
 * @property {Record<string, any>} data
 * @property {number | null} [step]
 * @property {number | null} [depth]
 * @property {number} [seq]
 * @property {string} [run_id]
 * @property {string | null} [group_id]
 * @property {string} [source]
 */

const MAX_ANSWER = 4_096; // characters of an answer that stay when the conversation is dropped

/** @typedef {(view: ChainView, event: StreamEvent, data: Record<string, any>, at: number | null) => void} Handler */

export class ChainView {
  constructor() {
    this.runId = "";
    this.chainId = "";
    /** @type {string | null} */
    this.groupId = null;
    this.source = "";
    this.asOf = -1; // the latest `seq` that the view has seen, -1 if events have none
    this.conversation = new Conversation();
    /** @type {Tail | null} the text of the open generation, null if none is open; each generation has a Tail of its own */
    this.generation = null;
    /** @type {Tail | null} */
    this.reasoning = null;
    /** @type {Map<string, OpenCall>} open calls by id */
    this.toolCalls = new Map();
    /** @type {Fields} */
    this.fields = newFields();
  }

  /** The state that the chain is in. @returns {ChainState} */
  get state() {
    return this.fields.state;
  }

  /** The conversation. Do not change it. */
  get messages() {
    return this.conversation.messages;
  }

  /** How many tokens were sampled as far as is known, with those of the open generation. */
  get tokens() {
    return this.fields.completion_tokens + this.fields.generation_tokens;
  }

  /** Whether every event since the chain's start was seen, so that its totals are right. */
  get complete() {
    return !this.fields.joined_late && !this.fields.gaps;
  }

  /**
   * Take the next event, in place. This never throws, whatever the event contains. An event whose `seq` is not above `asOf` was already
   * seen and changes nothing; one without `seq` always counts.
   * @param {StreamEvent} event
   */
  apply(event) {
    const runId = event.run_id ?? "";
    if ((event.chain_id !== this.chainId || runId !== this.runId) && !concerns(this, event)) return;
    const kind = textOf(event.event_type);
    const data = objectOf(event.data);
    const beside = BESIDE.get(kind);
    if (beside !== undefined) {
      beside(this, event, data, null);
      return;
    }
    const source = event.source === undefined ? "" : event.source;
    if (source !== this.source) {
      this.source = textOf(source);
      this.asOf = -1;
    }
    const seq = event.seq;
    if (typeof seq === "number" && Number.isInteger(seq) && seq >= 0) {
      if (seq <= this.asOf) return;
      this.asOf = seq < 2 ** 53 ? seq : this.asOf;
    }
    if (this.state === "ended" && !AFTER_END.has(kind)) return;
    const at = moment(event.timestamp);
    if (at !== null) this.fields.last_event_at = at;
    place(this, event);
    HANDLERS.get(kind)?.(this, event, data, at);
  }

  /**
   * Enter this state, and count how long the earlier one lasted.
   * @param {ChainState} state
   * @param {number | null} at
   */
  enter(state, at) {
    const fields = this.fields;
    if (state === fields.state) return;
    if (fields.since !== null && at !== null) {
      let time = fields.times.get(fields.state);
      if (time === undefined) fields.times.set(fields.state, (time = { seconds: 0, stays: 0, longest: 0 }));
      const seconds = at > fields.since ? at - fields.since : 0; // if the clock was set back, no time has passed
      time.seconds += seconds;
      time.stays += 1;
      time.longest = Math.max(time.longest, seconds);
    }
    fields.state = state;
    fields.since = at;
  }

  /** Drop the conversation, and all but the end of the answer, so that only little is kept. */
  forgetMessages() {
    this.conversation = new Conversation(this.conversation.omitted + this.messages.length);
    const fields = this.fields;
    if (fields.final_response !== null) {
      const [kept, omitted] = tailOf(fields.final_response, MAX_ANSWER);
      fields.final_response = kept;
      fields.final_response_omitted += omitted;
    }
  }

  /**
   * Read everything except the run, chain, group and source from the view as plain JSON (`ChainView.to_dict` of rollcast).
   * @param {Record<string, unknown>} value
   */
  restore(value) {
    this.fields = fieldsOf(value);
    this.asOf = seqOf(value.as_of);
    const omitted = totalOf(value.messages_omitted);
    const told = allMessages(value);
    const messages = omitted || this.conversation.omitted ? told : inFull(told, this.messages);
    this.conversation = Conversation.of(messages, countOf(value.prompt_length), omitted);
    const { content, reasoning } = value;
    this.generation =
      typeof content === "string" ? Tail.of(content, MAX_TEXT, totalOf(value.content_omitted)) : null;
    this.reasoning =
      typeof reasoning === "string" ? Tail.of(reasoning, MAX_OUTPUT, totalOf(value.reasoning_omitted)) : null;
    this.toolCalls = callsOf(value.tool_calls);
    const started = objectOf(value.calls_started_at);
    for (const call of this.toolCalls.values()) {
      if (call.startedAt === null && Object.hasOwn(started, call.callId)) {
        call.startedAt = moment(started[call.callId]);
        call.step = this.fields.step;
      }
    }
  }
}

// -- fields ---------------------------------------------------------------------------------------------------------

/**
 * What a chain's row has beside its texts and calls, named as in JSON. `ChainFields` in rollcast/records/view_fields.py describes them.
 * @typedef {object} Fields
 * @property {ChainState} state
 * @property {number | null} since
 * @property {Map<string, StateTime>} times
 * @property {number | null} started_at
 * @property {number | null} last_event_at
 * @property {number | null} ended_at
 * @property {boolean} joined_late
 * @property {number} gaps
 * @property {number | null} step
 * @property {number | null} depth
 * @property {number | null} generation_step
 * @property {number} generation_tokens
 * @property {number | null} prompt_tokens
 * @property {string | null} model
 * @property {number | null} policy_version
 * @property {number} generations
 * @property {number} truncated
 * @property {number} completion_tokens
 * @property {number} first_token_s
 * @property {Map<string, ToolUse>} tool_use
 * @property {number} calls_omitted
 * @property {{reward: number | null, final: boolean | null, step: number | null}[]} rewards
 * @property {number | null} reward
 * @property {Record<string, any>} metrics
 * @property {number | null} train_step
 * @property {number | null} advantage
 * @property {number | null} staleness
 * @property {number} errors
 * @property {{error: string, error_type: string | null, where: string | null} | null} error
 * @property {string | null} finish_reason
 * @property {string | null} final_response
 * @property {number} final_response_omitted
 * @property {number | null} steps
 * @property {number | null} duration_s
 * @property {number | null} index
 * @property {string[] | null} tools
 * @property {any} reference
 * @property {string | null} prompt_hash
 * @property {number | null} seed
 * @property {number | null} attempt
 * @property {string | null} parent_chain_id
 */

/** @returns {Fields} */
function newFields() {
  return fieldsOf({});
}

/**
 * Fields that are missing or have another shape are as in an empty view.
 * @param {Record<string, any>} value
 * @returns {Fields}
 */
function fieldsOf(value) {
  return {
    state: STATES.has(value.state) ? value.state : "unknown",
    since: moment(value.since),
    times: new Map(
      Object.entries(objectOf(value.times))
        .filter(([name]) => STATES.has(name))
        .map(([name, time]) => [name, stateTimeOf(time)]),
    ),
    started_at: moment(value.started_at),
    last_event_at: moment(value.last_event_at),
    ended_at: moment(value.ended_at),
    joined_late: value.joined_late !== false,
    gaps: totalOf(value.gaps),
    step: whole(value.step),
    depth: whole(value.depth),
    generation_step: whole(value.generation_step),
    generation_tokens: totalOf(value.generation_tokens),
    prompt_tokens: countOf(value.prompt_tokens),
    model: word(value.model),
    policy_version: whole(value.policy_version),
    generations: totalOf(value.generations),
    truncated: totalOf(value.truncated),
    completion_tokens: totalOf(value.completion_tokens),
    first_token_s: totalSecondsOf(value.first_token_s),
    tool_use: new Map(
      Object.entries(objectOf(value.tool_use))
        .slice(0, MAX_TOOLS + 1)
        .map(([name, use]) => [clean(name), toolUseOf(use)]),
    ),
    calls_omitted: totalOf(value.calls_omitted),
    rewards: (Array.isArray(value.rewards) ? value.rewards.slice(-MAX_REWARDS) : [])
      .filter((each) => objectOf(each) === each)
      .map(rewardOf),
    reward: number(value.reward),
    metrics: objectOf(small(value.metrics)),
    train_step: whole(value.train_step),
    advantage: number(value.advantage),
    staleness: whole(value.staleness),
    errors: totalOf(value.errors),
    error: errorOf(value.error),
    finish_reason: word(value.finish_reason),
    final_response: typeof value.final_response === "string" ? tailOf(value.final_response, MAX_TEXT)[0] : null,
    final_response_omitted: totalOf(value.final_response_omitted),
    steps: countOf(value.steps),
    duration_s: secondsOf(value.duration_s),
    index: countOf(value.index),
    tools: words(value.tools),
    reference: small(value.reference),
    prompt_hash: word(value.prompt_hash),
    seed: seedOf(value.seed),
    attempt: countOf(value.attempt),
    parent_chain_id: word(value.parent_chain_id),
  };
}

/**
 * The `messages` of a snapshot, with those from `unlisted_messages` put between them.
 * @param {Record<string, any>} value
 */
function allMessages(value) {
  const { messages: listed, unlisted_messages: unlisted } = value;
  if (!Array.isArray(listed) || !Array.isArray(unlisted) || unlisted.length === 0) return listed;
  const messages = [];
  let taken = 0;
  for (const found of unlisted.map(objectOf)) {
    const before = countOf(found.at) ?? 0;
    messages.push(...listed.slice(taken, Math.max(before, taken)));
    taken = Math.max(taken, Math.min(before, listed.length));
    messages.push(found.message ?? null);
  }
  return [...messages, ...listed.slice(taken)];
}

/**
 * The messages of a snapshot, in which those that a view knows from their events stay, as far as both tell of the same ones.
 *
 * A chain's own snapshot has of a turn only what the parser left; the events have its whole text, and how long its calls took.
 * @param {unknown} told
 * @param {readonly Message[]} known
 */
function inFull(told, known) {
  if (!Array.isArray(told)) return told;
  let same = true;
  let begin = 0; // of the tools' messages that stand next to each other
  return told.map((message, i) => {
    const said = objectOf(message);
    let seen = objectOf(known[i]);
    same &&= word(said.role) === word(seen.role) && !haveOtherCalls(said, seen);
    if (seen.role !== "tool") {
      begin = i + 1;
    } else {
      seen = {}; // a chain has them in the order of its calls, and a view in that of their ends
      for (let at = begin; known[at]?.role === "tool"; at += 1) {
        if (word(known[at]?.tool_call_id) === word(said.tool_call_id)) seen = objectOf(known[at]);
      }
    }
    const ended = word(seen.finish_reason) ?? word(seen.status);
    return !same || ended === null || Object.hasOwn(said, "step") ? message : seen;
  });
}

/**
 * Whether both messages list calls, and not the same ones.
 * @param {Record<string, any>} one
 * @param {Record<string, any>} other
 */
function haveOtherCalls(one, other) {
  const lists = new Set([callIds(one), callIds(other)]);
  return lists.size > 1 && !lists.has("[]");
}

/** @param {Record<string, any>} message */
function callIds(message) {
  return JSON.stringify(Array.isArray(message.tool_calls) ? message.tool_calls.map((call) => word(objectOf(call).id)) : []);
}

/**
 * The open calls of a snapshot or a view, at most 128.
 * @param {unknown} value
 */
function callsOf(value) {
  const found = (Array.isArray(value) ? value : []).filter((call) => objectOf(call) === call);
  return new Map(
    found.slice(0, MAX_CALLS).map((given) => {
      const call = new OpenCall(given);
      return [call.callId, call];
    }),
  );
}

/** @param {Record<string, any>} value */
function rewardOf(value) {
  const { final } = value;
  return { reward: number(value.reward), final: typeof final === "boolean" ? final : null, step: whole(value.step) };
}

// -- what is open, and how it ends --------------------------------------------------------------------------------------

/**
 * Whether an event with another run or chain concerns this view. An empty view takes on the event's run and chain.
 * @param {ChainView} view
 * @param {StreamEvent} event
 */
function concerns(view, event) {
  const kind = event.event_type;
  if (kind === "train_step") return true;
  if (kind === "gap" || kind === "run_end") {
    return (event.run_id ?? "") === view.runId && (event.source ?? "") === view.source;
  }
  if (view.chainId || view.runId || kind === "run_start") return false;
  view.chainId = textOf(event.chain_id);
  view.runId = textOf(event.run_id);
  view.groupId = word(event.group_id);
  view.source = textOf(event.source);
  return true;
}

/**
 * Forget an earlier attempt of the chain.
 * @param {ChainView} view
 * @param {string | null} groupId
 */
function beginAgain(view, groupId) {
  view.groupId = groupId;
  view.conversation = new Conversation();
  view.generation = view.reasoning = null;
  view.toolCalls = new Map();
  view.fields = newFields();
}

/**
 * Take the event's step and depth.
 * @param {ChainView} view
 * @param {StreamEvent} event
 */
function place(view, event) {
  const step = whole(event.step);
  if (step !== null) {
    view.fields.step = step;
    view.fields.depth = whole(event.depth);
  }
}

/**
 * Enter the state of what is still open, after something ended.
 * @param {ChainView} view
 * @param {number | null} at
 */
function rest(view, at) {
  if (view.generation !== null) view.enter("generating", at);
  else view.enter(view.toolCalls.size ? "tool" : "waiting", at);
}

/**
 * Begin a generation; what was open before it has ended unseen.
 * @param {ChainView} view
 * @param {number | null} step
 */
function openGeneration(view, step) {
  closeGeneration(view);
  closeCalls(view);
  view.generation = new Tail(MAX_TEXT);
  view.reasoning = null;
  view.fields.generation_step = step;
  view.fields.generation_tokens = 0;
  return view.generation;
}

/**
 * End the open generation, whose end was not seen; its text so far becomes a message.
 * @param {ChainView} view
 */
function closeGeneration(view) {
  const fields = view.fields;
  if (view.generation !== null && view.generation.end) {
    view.conversation.add(withReasoning(view, generated(view.generation, null, fields.generation_step)));
  }
  view.generation = view.reasoning = null;
  fields.completion_tokens += fields.generation_tokens;
  fields.generation_tokens = 0;
}

/**
 * @param {ChainView} view
 * @param {Message} message
 */
function withReasoning(view, message) {
  return view.reasoning === null ? message : { ...message, reasoning: view.reasoning.text };
}

/** @param {ChainView} view */
function closeCalls(view) {
  for (const call of [...view.toolCalls.values()]) closeCall(view, call, call.status, null);
}

/**
 * End a tool call: count it, and add its output to the conversation.
 * @param {ChainView} view
 * @param {OpenCall} call
 * @param {string | null} status
 * @param {number | null} durationS
 */
function closeCall(view, call, status, durationS) {
  view.toolCalls.delete(call.callId);
  countUse(view.fields.tool_use, call.toolName, status, durationS);
  view.conversation.add(answered(call, status, durationS));
}

/**
 * The event's tool call, which is opened if it was not known.
 * @param {ChainView} view
 * @param {StreamEvent} event
 * @param {Record<string, any>} data
 * @param {number | null} at
 */
function callOf(view, event, data, at) {
  const { call_id, tool_name, arguments: given } = data;
  const known = view.toolCalls.get(word(call_id) ?? "");
  if (known !== undefined) return known;
  const call = new OpenCall({ call_id, tool_name, arguments: given, step: event.step });
  if (event.event_type === "tool_call_start") call.startedAt = at;
  if (view.toolCalls.size < MAX_CALLS) view.toolCalls.set(call.callId, call);
  return call;
}

/**
 * The generation that a chunk belongs to; if its step differs from the open one's, its start was not seen.
 * @param {ChainView} view
 * @param {StreamEvent} event
 */
function generationOf(view, event) {
  const step = whole(event.step);
  const known = view.fields.generation_step;
  if (view.generation === null || (step !== null && known !== null && step !== known)) return openGeneration(view, step);
  view.fields.generation_step = step ?? known;
  return view.generation;
}

/**
 * The new text of a chunk that does not begin where the text ends, how many of its ids are new, and whether all of it is. How many ids are
 * new is estimated in proportion, until the generation's end gives the exact number.
 * @param {Tail} tail
 * @param {string} text
 * @param {number} count
 * @param {unknown} given
 * @returns {[string, number, boolean]}
 */
function placed(tail, text, count, given) {
  const offset = countOf(given);
  if (offset === null) return [text, count, true];
  if (offset > tail.end) {
    tail.restart(offset);
    return [text, count, true];
  }
  const known = tail.end - offset;
  if (known === 0) return [text, count, true];
  const fresh = slice(text, known);
  return [fresh, text ? Math.floor((count * length(fresh)) / length(text)) : 0, false];
}

/**
 * What Python takes for true: not null, false, zero, nor an empty text, list or object.
 * @param {unknown} value
 */
function truthy(value) {
  return typeof value === "object" && value !== null ? Object.keys(value).length > 0 : Boolean(value);
}

// -- what each type of event changes --------------------------------------------------------------------------------------

/** @type {Map<string, Handler>} */
const HANDLERS = new Map(
  Object.entries({
    chain_start(view, event, data, at) {
      beginAgain(view, word(event.group_id));
      const fields = view.fields;
      fields.joined_late = false;
      fields.started_at = fields.last_event_at = at;
      view.conversation = Conversation.of(data.messages);
      view.conversation.promptLength = view.messages.length;
      fields.index = countOf(data.index);
      fields.attempt = countOf(data.attempt);
      fields.tools = words(data.tools);
      fields.seed = seedOf(data.seed);
      fields.policy_version = whole(data.policy_version);
      fields.reference = small(data.reference);
      fields.prompt_hash = word(data.prompt_hash);
      fields.parent_chain_id = word(data.parent_chain_id);
      view.enter("waiting", at);
    },

    llm_generation_start(view, event, data, at) {
      const step = whole(event.step);
      const fields = view.fields;
      if (view.generation === null || step === null || step !== fields.generation_step) openGeneration(view, step);
      fields.prompt_tokens = countOf(data.prompt_tokens);
      fields.model = word(data.model) || fields.model;
      fields.policy_version = whole(data.policy_version) ?? fields.policy_version;
      view.enter("generating", at);
    },

    llm_generation_chunk(view, event, data, at) {
      const fields = view.fields;
      let tail = view.generation;
      if (tail === null || (event.step ?? null) !== fields.generation_step) tail = generationOf(view, event);
      let text = textOf(data.content);
      let count = Array.isArray(data.token_ids) ? data.token_ids.length : 0;
      let fresh = true;
      if (data.offset !== tail.end) [text, count, fresh] = placed(tail, text, count, data.offset);
      if (text) tail.append(text);
      fields.generation_tokens += count;
      if (fresh && Object.hasOwn(data, "reasoning")) {
        view.reasoning ??= new Tail(MAX_OUTPUT);
        view.reasoning.append(textOf(data.reasoning));
      }
      view.enter("generating", at);
    },

    llm_generation_end(view, event, data, at) {
      const fields = view.fields;
      const step = whole(event.step);
      const tail = view.generation;
      if (tail === null && step !== null && step === fields.generation_step) return; // its end was already seen
      const why = word(data.finish_reason);
      const said = typeof data.content === "string" ? data.content : (tail ?? new Tail(MAX_TEXT));
      if (typeof data.reasoning === "string") view.reasoning = Tail.of(data.reasoning, MAX_OUTPUT); // whole
      view.conversation.add(withReasoning(view, generated(said, why, step)));
      view.generation = view.reasoning = null;
      fields.generation_step = step;
      fields.completion_tokens += countOf(data.completion_tokens) ?? fields.generation_tokens;
      fields.generation_tokens = 0;
      fields.prompt_tokens = countOf(data.prompt_tokens) ?? fields.prompt_tokens;
      fields.first_token_s += secondsOf(data.ttft_s) ?? 0;
      fields.generations += 1;
      fields.truncated += why === "length" ? 1 : 0;
      if ((why === "stop" || why === "length") && !view.toolCalls.size) view.enter("scoring", at);
      else rest(view, at);
    },

    tool_call_start(view, event, data, at) {
      if (view.toolCalls.has(word(data.call_id) ?? "")) return;
      closeGeneration(view);
      view.fields.calls_omitted += view.toolCalls.size >= MAX_CALLS ? 1 : 0;
      view.conversation.listCall(callOf(view, event, data, at));
      rest(view, at);
    },

    tool_observation(view, event, data, at) {
      const callId = word(data.call_id) ?? "";
      if (!view.toolCalls.has(callId) && view.conversation.answers(callId)) return; // its end was already seen
      const call = callOf(view, event, data, at);
      const text = textOf(data.observation);
      if (data.partial === true) {
        call.output.append(text);
      } else {
        call.output = Tail.of(text, MAX_OUTPUT);
        call.status = word(data.status) || "success";
      }
      rest(view, at);
    },

    tool_call_end(view, event, data, at) {
      const callId = word(data.call_id) ?? "";
      if (!view.toolCalls.has(callId) && view.conversation.answers(callId)) return;
      const call = callOf(view, event, data, at);
      let duration = secondsOf(data.duration_s);
      if (duration === null && call.startedAt !== null && at !== null) duration = Math.max(at - call.startedAt, 0);
      closeCall(view, call, word(data.status) || call.status, duration);
      rest(view, at);
    },

    message(view, _event, data, at) {
      view.conversation.take(data);
      rest(view, at);
    },

    reward(view, event, data) {
      const fields = view.fields;
      const given = rewardOf({ ...data, step: event.step });
      const settled = fields.rewards.some((each) => each.final) || view.state === "ended";
      fields.rewards = [...fields.rewards.slice(-MAX_REWARDS + 1), given];
      if (given.final === true || !settled || fields.reward === null) {
        fields.reward = given.reward;
        fields.metrics = objectOf(small(data.metrics));
      }
    },

    error(view, _event, data) {
      view.fields.errors += 1;
      view.fields.error = errorOf(data);
    },

    chain_end(view, _event, data, at) {
      closeGeneration(view);
      closeCalls(view);
      const fields = view.fields;
      fields.finish_reason = word(data.finish_reason) || "unknown";
      [fields.final_response, fields.final_response_omitted] = tailOf(textOf(data.final_response), MAX_TEXT);
      fields.steps = countOf(data.steps);
      fields.duration_s = secondsOf(data.duration_s);
      fields.completion_tokens = countOf(data.completion_tokens) ?? fields.completion_tokens;
      if (Object.hasOwn(data, "reward")) fields.reward = number(data.reward);
      if (truthy(data.metrics)) fields.metrics = objectOf(small(data.metrics));
      fields.ended_at = at;
      view.enter("ended", at);
    },
  }),
);

/** What may come in any order with the chain's own events. @type {Map<string, Handler>} */
const BESIDE = new Map(
  Object.entries({
    chain_snapshot(view, event, data) {
      const asOf = seqOf(data.as_of);
      if (asOf >= 0 && asOf < view.asOf && (event.source ?? "") === view.source) return; // older than what is known
      const another = textOf(event.source) !== view.source || countOf(data.attempt) !== view.fields.attempt;
      view.source = textOf(event.source);
      view.groupId = word(event.group_id);
      if (view.state === "ended" || (another && STATES.has(data.state))) beginAgain(view, view.groupId); // it has begun again, unseen
      if (STATES.has(data.state)) {
        view.restore(data);
        return;
      }
      const at = moment(event.timestamp);
      view.asOf = asOf >= 0 ? asOf : view.asOf;
      const step = event.step ?? null;
      const goingOn = view.generation !== null && view.fields.generation_step === step;
      const sameStep = view.fields.step === step;
      view.fields.last_event_at = at ?? view.fields.last_event_at;
      place(view, event);
      view.conversation = Conversation.of(data.messages, view.conversation.promptLength);
      view.generation = typeof data.content === "string" ? Tail.of(data.content, MAX_TEXT) : null;
      const fields = view.fields;
      if (view.generation === null || !goingOn) {
        fields.completion_tokens += fields.generation_tokens;
        fields.generation_tokens = 0;
        view.reasoning = null;
      }
      fields.generation_step = whole(event.step);
      view.toolCalls = callsOf(data.tool_calls);
      const { state, since } = fields;
      if (!(state === "scoring" && sameStep && view.generation === null && !view.toolCalls.size)) rest(view, at);
      if (view.state !== state || !sameStep || since === null) fields.since = at;
    },

    gap(view, event, data) {
      const last = seqOf(data.to_seq); // -1 if it is not known
      if (view.state === "ended" || (last >= 0 && last <= view.asOf)) return;
      view.asOf = Math.max(last, view.asOf);
      const fields = view.fields;
      fields.gaps += 1;
      view.generation = view.reasoning = fields.generation_step = null;
      fields.generation_tokens = 0;
      view.toolCalls = new Map();
      fields.state = "unknown";
      fields.since = fields.last_event_at; // how long the earlier state lasted is not known
      if (Object.hasOwn(data, "run_status")) view.enter("lost", moment(event.timestamp));
    },

    train_step(view, _event, data) {
      const ofRun = objectOf(own(objectOf(data.chains), view.runId));
      const learned = objectOf(own(ofRun, view.chainId));
      if (Object.keys(learned).length === 0) return;
      view.fields.train_step = whole(data.train_step);
      view.fields.advantage = number(learned.advantage);
      view.fields.staleness = whole(learned.staleness);
    },

    run_start() {},

    run_end(view, event) {
      if (view.state === "ended" || view.state === "lost") return;
      closeGeneration(view);
      closeCalls(view);
      view.enter("lost", moment(event.timestamp));
    },
  }),
);

/** What counts after a chain's end. */
const AFTER_END = new Set(["chain_start", "reward", "error"]);
