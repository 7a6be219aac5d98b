// Views as plain JSON, as `to_dict` in rollcast/records writes them. The page itself only reads that form.

import { clean } from "../../src/rollcast/serve/page/bounded.js";

/** The `data` of a `chain_snapshot` in its long form. */
export function chainAsDict(view) {
  const { times, tool_use: toolUse, ...rest } = view.fields;
  return {
    run_id: clean(view.runId),
    chain_id: clean(view.chainId),
    group_id: view.groupId,
    source: clean(view.source),
    messages: [...view.messages],
    content: view.generation === null ? null : view.generation.text,
    tool_calls: [...view.toolCalls.values()].map(callAsDict),
    as_of: view.asOf,
    prompt_length: view.conversation.promptLength,
    messages_omitted: view.conversation.omitted,
    content_omitted: view.generation === null ? 0 : view.generation.omitted,
    reasoning: view.reasoning === null ? null : view.reasoning.text,
    reasoning_omitted: view.reasoning === null ? 0 : view.reasoning.omitted,
    ...rest,
    times: Object.fromEntries(times),
    tool_use: Object.fromEntries(toolUse),
  };
}

function callAsDict(call) {
  return {
    call_id: call.callId,
    tool_name: call.toolName,
    arguments: call.arguments,
    arguments_omitted: call.argumentsOmitted,
    observation: call.output.text,
    omitted: call.output.omitted,
    step: call.step,
    started_at: call.startedAt,
    status: call.status,
  };
}

/** A row about the run with counts of its chains; dropped chains count as ended. */
export function runAsDict(run) {
  const byState = {};
  for (const view of run.chains.values()) byState[view.state] = (byState[view.state] ?? 0) + 1;
  if (run.fields.omitted) byState.ended = (byState.ended ?? 0) + run.fields.omitted;
  return { run_id: clean(run.runId), ...run.fields, by_state: byState, failed: run.failed, tokens: run.tokens, mean_reward: run.meanReward };
}
