// What in a run is worth a look, from the rows of its chains, and in a training, from the summaries of its steps: the rules of
// rollcast/records/hint_rules.py, hint_quiet.py and hints.py, which say why the numbers are what they are. The same chains give the
// same sentences there and here (tests/page/hints.test.js).

import { plainLine } from "./text.js";

/** @typedef {import("./store.js").Row} Row */

/**
 * Something that is worth a look. `kind`, `runId`, `groupId` and `subject` together identify it while its sentence and chains change.
 * @typedef {object} Hint
 * @property {"quiet" | "tool_fails" | "flat_groups" | "alike_and_wrong" | "reward_without_reference" | "truncated" | "same_answers" | "length_drift"} kind
 * @property {string} sentence
 * @property {string} runId
 * @property {string[]} chains ids of the chains that show it, at most 64
 * @property {number} count how many chains show it
 * @property {string | null} groupId the group, if it is about one
 * @property {string} subject the tool or the state that it is about; "" if it is about neither
 */

const MAX_NAMED = 64;
const MAX_SHOWN = 60;
export const QUIET_S = 10; // shorter silences are never told
const QUIET_MEDIANS = 8;
const QUIET_LONGEST = 2;
const MIN_STAYS = 8;
const MIN_CALLS = 8;
const FAILING = 0.5;
const CALLS_OF_A_CHAIN = 3;
const MIN_GROUP = 4;
const MIN_GROUPS = 8;
const FLAT = 0.75;
const EQUAL = 1e-9;
const MAX_REWARD = 1e100;
const MIN_REWARDED = 8;
const OTHERWISE_JUDGED = 0.5;
const MIN_ENDED = 16;
const TRUNCATED = 0.25;
const MIN_STEPS = 12;
const RISING = 0.1;
const SAME_ANSWER = 0.8;
const SAME_ANSWER_BEFORE = 0.5;
const DRIFT = 2;

/**
 * Find what is worth a look, run by run.
 * @param {readonly Row[]} rows
 * @param {number | null} [now] seconds since the epoch, on the clock of the events; null: nothing is said about quiet chains
 * @returns {Hint[]}
 */
export function needsALook(rows, now = null) {
  /** @type {Hint[]} */
  const found = [];
  for (const ofRun of grouped(rows, (row) => row.run_id).values()) {
    if (now !== null) found.push(...quiet(ofRun, now));
    for (const rule of [toolFails, flatGroups, alikeAndWrong, rewardWithoutReference, truncated]) found.push(...rule(ofRun));
  }
  return found;
}

/**
 * @param {Hint["kind"]} kind
 * @param {string} sentence
 * @param {readonly Row[]} rows
 * @param {string | null} [groupId]
 * @param {string} [subject]
 * @returns {Hint}
 */
function hint(kind, sentence, rows, groupId = null, subject = "") {
  const chains = rows.slice(0, MAX_NAMED).map((row) => row.chain_id);
  return { kind, sentence, runId: rows[0]?.run_id ?? "", chains, count: rows.length, groupId, subject };
}

/**
 * The first chains that show the hint, for the end of its sentence: `chain_1, chain_5 and 6 more`; "" if the sentence names its only chain.
 * @param {Hint} hint
 * @param {number} [most]
 */
export function namedChains({ kind, count, chains }, most = 4) {
  if (kind === "quiet" && count === 1) return "";
  const names = chains.slice(0, most).map((name) => plainLine(name, MAX_SHOWN));
  const more = count - names.length;
  return names.join(", ") + (more > 0 ? ` and ${more.toLocaleString("en")} more` : "");
}

/**
 * @template T
 * @template K
 * @param {Iterable<T>} items
 * @param {(item: T) => K} keyOf
 * @returns {Map<K, T[]>}
 */
function grouped(items, keyOf) {
  /** @type {Map<K, T[]>} */
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const known = groups.get(key);
    if (known) known.push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

// -- quiet chains ---------------------------------------------------------------------------------------------------------

/** For one chain, for several, and what the median is of. @type {Record<string, [string, string, string]>} */
const DOING = {
  waiting: ["is between two turns", "are between two turns", "pause between turns"],
  generating: ["is generating", "are generating", "generation"],
  tool: ["is waiting for", "are waiting for", "call"],
  scoring: ["is waiting for its reward", "are waiting for their rewards", "wait for a reward"],
};

/**
 * Open chains that have sent nothing for much longer than their state usually lasts in this run. Rows tell nothing of tokens, so of chains
 * that generate it is known only that their generation has not ended.
 * @param {Row[]} rows
 * @param {number} now
 * @returns {Hint[]}
 */
function quiet(rows, now) {
  /** @type {{silence: number, row: Row, tools: string[]}[]} */
  const silent = [];
  for (const row of rows) {
    const silence = typeof row.last_event_at === "number" ? now - row.last_event_at : 0;
    if (row.state !== "running" || !Object.hasOwn(DOING, row.activity ?? "") || silence < QUIET_S) continue;
    silent.push({ silence, row, tools: [...(row.open_tools ?? [])].sort(byCode) });
  }
  /** @type {Hint[]} */
  const hints = [];
  for (const found of grouped(silent, ({ row, tools }) => JSON.stringify([row.activity, tools])).values()) {
    const state = String(found[0]?.row.activity);
    const tools = found[0]?.tools ?? [];
    let usual = { median: 0, stays: 0, least: Infinity };
    for (const [i, each] of (tools.length ? tools : [""]).map((tool) => usualOf(rows, state, tool)).entries()) {
      if (i === 0 || each.least > usual.least) usual = each;
    }
    const quiet = found.filter(({ silence }) => silence >= usual.least);
    if (!quiet.length || usual.stays < (state === "generating" ? MIN_STAYS * quiet.length : 1)) continue;
    const least = seconds(Math.min(...quiet.map(({ silence }) => silence)));
    const [one, several, usually] = /** @type {[string, string, string]} */ (DOING[state]);
    const who = quiet.length === 1 ? plainLine(quiet[0]?.row.chain_id ?? "", MAX_SHOWN) : `${quiet.length} chains`;
    const nothing = quiet.length === 1 ? `has sent nothing for ${least}` : `have sent nothing for at least ${least}`;
    let what = quiet.length === 1 ? one : several;
    if (state === "tool") what += tools.length ? ` the tool ${tools.map(shown).join(" and ")}` : " a tool";
    const sentence = `${who} ${what} and ${nothing}; the median ${usually} of this run took ${seconds(usual.median)}`;
    hints.push(hint("quiet", sentence, quiet.map(({ row }) => row), null, tools.join(" and ") || state));
  }
  return hints;
}

/**
 * How long a call of the tool usually lasts; how long the state does, if there is no tool or fewer than eight calls ended.
 * @param {Row[]} rows
 * @param {string} state
 * @param {string} tool
 * @returns {{median: number, stays: number, least: number}} seconds; `stays`: how often it was seen to end
 */
export function usualOf(rows, state, tool) {
  const uses = tool ? rows.map((row) => useOf(row, tool)).filter((use) => use !== null) : [];
  let count = sum(uses.map((use) => use.calls));
  let means = uses.filter((use) => use.calls).map((use) => use.seconds / use.calls);
  let longest = Math.max(0, ...means);
  if (count < MIN_STAYS) {
    const times = rows.map((row) => staysOf(row, state)).filter((stays) => stays !== null);
    count = sum(times.map((time) => time.count));
    means = times.filter((time) => time.count).map((time) => time.seconds / time.count);
    longest = Math.max(0, ...times.map((time) => time.longest));
  }
  if (count < MIN_STAYS || !means.length) return { median: 0, stays: 0, least: Infinity };
  const middle = median(means);
  return { median: middle, stays: count, least: Math.max(QUIET_S, QUIET_MEDIANS * middle, QUIET_LONGEST * longest) };
}

/**
 * @param {Row} row
 * @param {string} tool
 * @returns {{calls: number, failed: number, seconds: number} | null}
 */
function useOf(row, tool) {
  const uses = row.tool_use ?? {};
  return Object.hasOwn(uses, tool) ? uses[tool] : null;
}

/**
 * @param {Row} row
 * @param {string} state
 * @returns {{seconds: number, count: number, longest: number} | null}
 */
function staysOf(row, state) {
  const stays = row.stays?.[state];
  return stays ? { seconds: row.times?.[state] ?? 0, count: stays.count, longest: stays.longest } : null;
}

// -- tools ----------------------------------------------------------------------------------------------------------------------

/** Tools of which half of the calls fail. @param {Row[]} rows @returns {Hint[]} */
function toolFails(rows) {
  /** @type {Map<string, Row[]>} */
  const byTool = new Map();
  for (const row of rows) for (const name of Object.keys(row.tool_use ?? {})) byTool.set(name, [...(byTool.get(name) ?? []), row]);
  /** @type {Hint[]} */
  const hints = [];
  for (const [name, users] of byTool) {
    const uses = users.map((row) => ({ row, use: row.tool_use[name] })).filter(({ use }) => use.calls);
    const [calls, failed] = [sum(uses.map(({ use }) => use.calls)), sum(uses.map(({ use }) => use.failed))];
    const weighed = sum(uses.map(({ use }) => Math.min(use.calls, CALLS_OF_A_CHAIN)));
    const weighedFailed = sum(uses.map(({ use }) => (Math.min(use.calls, CALLS_OF_A_CHAIN) * use.failed) / use.calls));
    if (weighed < MIN_CALLS || weighedFailed < FAILING * weighed) continue;
    const what = name ? `The tool ${shown(name)} failed in` : "Tool calls without a name failed in";
    const showing = uses.filter(({ use }) => use.failed).map(({ row }) => row);
    hints.push(hint("tool_fails", `${what} ${failed} of ${calls} calls`, showing, null, name));
  }
  return hints;
}

// -- groups ----------------------------------------------------------------------------------------------------------------------

/** Groups of at least four chains that have all ended: by id, the chains with a reward. @param {Row[]} rows */
function groupsOf(rows) {
  const groups = grouped(rows.filter((row) => typeof row.group_id === "string"), (row) => String(row.group_id));
  /** @type {Map<string, Row[]>} */
  const whole = new Map();
  for (const [name, found] of groups) {
    const scored = found.filter((row) => typeof row.reward === "number");
    if (found.every((row) => row.state === "ended") && scored.length >= MIN_GROUP) whole.set(name, scored);
  }
  return whole;
}

/** The rewards, within limits that keep sums and squares finite. @param {readonly Row[]} rows @returns {number[]} */
function rewardsOf(rows) {
  return rows.filter((row) => typeof row.reward === "number").map((row) => Math.max(-MAX_REWARD, Math.min(row.reward, MAX_REWARD)));
}

/** Most groups have the same reward for all chains. @param {Row[]} rows @returns {Hint[]} */
function flatGroups(rows) {
  const groups = [...groupsOf(rows).values()];
  const flat = groups.filter((found) => Math.max(...rewardsOf(found)) - Math.min(...rewardsOf(found)) <= EQUAL);
  if (groups.length < MIN_GROUPS || flat.length < FLAT * groups.length) return [];
  const counts = [...grouped(flat, (found) => Math.round((rewardsOf(found)[0] ?? 0) * 1e6) / 1e6)];
  counts.sort(([, one], [, other]) => other.length - one.length);
  const which = counts.slice(0, 3).map(([reward, found]) => `${general(reward)} in ${found.length}`).join(", ");
  const sentence = `In ${flat.length} of ${groups.length} groups all chains got the same reward (${which}), so nothing can be learned from them`;
  return [hint("flat_groups", sentence, flat.flat())];
}

/** Groups whose chains all give the same answer, and a low reward for it. @param {Row[]} rows @returns {Hint[]} */
function alikeAndWrong(rows) {
  const rewards = rewardsOf(rows);
  const groups = groupsOf(rows);
  if (!rewards.length || !groups.size) return [];
  const [lowest, highest] = [Math.min(...rewards), Math.max(...rewards)];
  const low = highest - lowest > EQUAL ? (lowest + highest) / 2 : Math.min(highest, 0) + EQUAL;
  const wrong = grouped(rows.filter((row) => typeof row.reward === "number" && row.reward < low), answerOf);
  const allWrong = sum([...wrong.values()].map((found) => found.length));
  /** @type {Hint[]} */
  const hints = [];
  for (const [name, found] of groups) {
    const answers = new Set(found.map(answerOf));
    const [answer] = answers;
    const most = Math.max(...rewardsOf(found));
    if (answers.size > 1 || !answer || most >= low) continue;
    const elsewhere = allWrong - found.length;
    const alike = (wrong.get(answer)?.length ?? 0) - found.length;
    if (elsewhere >= MIN_GROUP && alike >= elsewhere / 2) continue; // failing chains give this answer to other questions too
    const reference = found[0]?.reference ?? null;
    const known = reference === null ? "" : `; the reference is ${shown(written(reference))}`;
    const sentence =
      `All ${found.length} chains of the group ${shown(name)} gave the same answer, ${shown(found[0]?.answer ?? "")}, ` +
      `and got a reward of at most ${general(most)}${known}`;
    hints.push(hint("alike_and_wrong", sentence, found, name));
  }
  return hints;
}

// -- rewards and references ---------------------------------------------------------------------------------------------------------

/**
 * Chains with a reward of 1 or more whose answer is not the reference, in a run whose reward judges by the reference.
 * @param {Row[]} rows
 * @returns {Hint[]}
 */
function rewardWithoutReference(rows) {
  const judged = rows.filter((row) => row.state === "ended" && typeof row.reward === "number" && row.reward >= 1 - EQUAL);
  const known = judged.map((row) => ({ row, right: matches(row.answer ?? "", row.reference) })).filter(({ right }) => right !== null);
  const otherwise = known.filter(({ right }) => !right).map(({ row }) => row);
  const first = otherwise[0];
  if (first === undefined || known.length < MIN_REWARDED || otherwise.length > OTHERWISE_JUDGED * known.length) return [];
  const sentence =
    `${otherwise.length} of ${known.length} chains with a reward of 1 or more gave an answer without the reference, ` +
    `such as ${shown(first.answer ?? "")} instead of ${shown(written(first.reference))}`;
  const groups = new Set(otherwise.map((row) => row.group_id ?? null));
  return [hint("reward_without_reference", sentence, otherwise, groups.size === 1 ? (first.group_id ?? null) : null)];
}

const NUMBER = /(?:(?<![\p{L}\p{N}_.)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?/gu;
const FORMULA = /[\\/^√%{}]/u; // an answer that may say the same number in another way

/**
 * Whether the answer contains the reference; null if that cannot be decided, as for a formula or other objects.
 * @param {string} answer
 * @param {unknown} reference
 * @returns {boolean | null}
 */
function matches(answer, reference) {
  if (Array.isArray(reference)) {
    const found = reference.map((each) => matches(answer, each));
    return !found.length || found.includes(null) ? null : found.includes(true);
  }
  if (typeof reference !== "number" && typeof reference !== "string") return null;
  const [wanted, said] = [normal(String(reference)), normal(answer)];
  if (!wanted || FORMULA.test(wanted) || FORMULA.test(said)) return null;
  if (said.includes(wanted) || (said && wanted.includes(said))) return true;
  const numbers = numbersIn(wanted);
  const last = numbers.at(-1);
  const isShort = [...wanted].length <= MAX_SHOWN;
  if (last === undefined) return isShort ? false : null; // a longer reference is an essay, which is not repeated word by word
  return numbersIn(said).some((each) => Math.abs(each - last) <= Math.max(1e-6 * Math.max(Math.abs(each), Math.abs(last)), 1e-6));
}

/** @param {string} text @returns {number[]} */
function numbersIn(text) {
  return (text.match(NUMBER) ?? []).map((each) => Number(each.replaceAll(",", "").replaceAll("\u2212", "-")));
}

/** @param {string} text */
function normal(text) {
  const folded = text.toUpperCase().toLowerCase(); // as near to `casefold` as JavaScript comes
  return folded.split(/\s+/u).filter((each) => each).join(" ").replace(/^[ .!"'`*$]+|[ .!"'`*$]+$/gu, "");
}

/** @param {Row} row */
function answerOf(row) {
  return normal(row.answer ?? "");
}

// -- limits ---------------------------------------------------------------------------------------------------------------------------

/** Many chains ended because they reached the limit of tokens. @param {Row[]} rows @returns {Hint[]} */
function truncated(rows) {
  const ended = rows.filter((row) => row.state === "ended");
  const cut = ended.filter((row) => row.finish_reason === "max_tokens");
  if (ended.length < MIN_ENDED || cut.length < TRUNCATED * ended.length) return [];
  return [hint("truncated", `${cut.length} of ${ended.length} chains ended because they reached the limit of tokens (max_tokens)`, cut)];
}

// -- over several steps --------------------------------------------------------------------------------------------------------------------

/**
 * The summary of a training step's rollout, which the row of its run has once it is over: `StepSummary` of hints.py. `ids`: some of its chains.
 * @typedef {object} StepSummary
 * @property {string} run_id
 * @property {number} chains how many chains ended with a reward
 * @property {string[]} ids
 * @property {number} mean_reward
 * @property {number} variance of the rewards
 * @property {number} lowest
 * @property {number} highest
 * @property {number} mean_tokens
 * @property {number} questions
 * @property {number} same_answer the share of the questions whose rewarded answer is `answer`
 * @property {string | null} answer
 */

/**
 * Find what is worth a look in the steps of a training: a reward that may rise for the wrong reason.
 * @param {readonly StepSummary[]} steps in order
 * @returns {Hint[]}
 */
export function trendHints(steps) {
  const third = Math.floor(steps.length / 3);
  const [first, last] = [steps.slice(0, third), steps.slice(steps.length - third)];
  const latest = last.at(-1);
  if (steps.length < MIN_STEPS || latest === undefined || !rises(first, last)) return [];
  /** @type {Hint[]} */
  const hints = [];
  const trend = (/** @type {Hint["kind"]} */ kind, /** @type {string} */ sentence) =>
    hints.push({ kind, sentence, runId: latest.run_id, chains: latest.ids, count: latest.chains, groupId: null, subject: "" });
  const [low, high] = [first, last].map((part) => average(part.map((step) => step.mean_reward)));
  const rise = `The reward rose from ${decimal(low ?? 0, 2)} to ${decimal(high ?? 0, 2)}`;
  const [before, same] = [first, last].map((part) => part.filter((step) => step.questions >= MIN_GROUP).map((step) => step.same_answer));
  if (same?.length && before?.length && Math.min(...same) >= SAME_ANSWER && average(before) <= SAME_ANSWER_BEFORE) {
    const share = `${decimal(latest.same_answer * 100, 0)}%`;
    trend("same_answers", `${rise} while the answers became the same: for ${share} of the questions the rewarded answer is now ${shown(latest.answer ?? "")}`);
  }
  const [short = 0, long = 0] = [first, last].map((part) => average(part.map((step) => step.mean_tokens)));
  if (Math.min(short, long) > 0 && Math.max(short / long, long / short) >= DRIFT) {
    const way = long > short ? "longer" : "shorter";
    trend("length_drift", `${rise} while the chains became ${way}: from ${decimal(short, 0)} to ${decimal(long, 0)} tokens on average`);
  }
  return hints;
}

/**
 * Whether the reward rose by more than chance explains: by a tenth of its range, and twice the standard error.
 * @param {readonly StepSummary[]} first
 * @param {readonly StepSummary[]} last
 */
function rises(first, last) {
  const lowest = Math.min(...[...first, ...last].map((step) => step.lowest));
  const highest = Math.max(...[...first, ...last].map((step) => step.highest));
  const gain = average(last.map((step) => step.mean_reward)) - average(first.map((step) => step.mean_reward));
  const error = Math.sqrt(sum([first, last].map((part) => average(part.map((step) => step.variance)) / sum(part.map((step) => step.chains)))));
  return gain > EQUAL && gain >= RISING * (highest - lowest) && gain >= 2 * error;
}

// -- words and numbers -------------------------------------------------------------------------------------------------------------------

/** Text from a model, a tool or a row, in quotation marks. @param {string} text */
function shown(text) {
  return `\u201c${plainLine(text, MAX_SHOWN)}\u201d`;
}

/** @param {unknown} reference */
function written(reference) {
  return typeof reference === "string" ? reference : JSON.stringify(reference);
}

/** @param {number} value */
function seconds(value) {
  if (value < 1) return `${decimal(value * 1000, 0)} ms`;
  return value < 10 ? `${decimal(value, 1)} s` : `${decimal(value, 0)} s`;
}

/** The number with at most six digits, as Python's `:g` writes it. @param {number} value */
function general(value) {
  if (value === 0) return "0";
  const exponent = Number(value.toExponential(5).split("e")[1]);
  if (exponent >= -4 && exponent < 6) return String(Number(value.toPrecision(6)));
  const [digits = ""] = value.toExponential(5).split("e");
  const sign = exponent < 0 ? "-" : "+";
  return `${String(Number(digits))}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

/** @param {readonly number[]} values */
function sum(values) {
  return values.reduce((total, each) => total + each, 0);
}

/** @param {readonly number[]} values at least one */
function average(values) {
  return sum(values) / values.length;
}

/**
 * The number with this many decimals, as Python writes it: of two that are equally near, the even one.
 * @param {number} value
 * @param {0 | 1 | 2} digits
 */
function decimal(value, digits) {
  const isHalfway = Math.abs((value * 2 ** (digits + 1)) % 2) === 1; // 0.125 is halfway between 0.12 and 0.13, and 0.135 is not, in binary
  return isHalfway ? ((2 * Math.round((value * 10 ** digits) / 2)) / 10 ** digits).toFixed(digits) : value.toFixed(digits);
}

/** @param {readonly number[]} values at least one */
function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const half = Math.floor(sorted.length / 2);
  const upper = sorted[half] ?? 0;
  return sorted.length % 2 ? upper : ((sorted[half - 1] ?? 0) + upper) / 2;
}

/**
 * The order of code points, in which Python sorts.
 * @param {string} one
 * @param {string} other
 */
function byCode(one, other) {
  return one < other ? -1 : one > other ? 1 : 0;
}
