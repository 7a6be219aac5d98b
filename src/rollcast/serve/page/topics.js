// Who listens to which change. The store marks what has changed; once a frame, the listeners that draw it are called. Pure.

import { chainKey } from "./store.js";

export class Topics {
  constructor() {
    /** @type {Map<string, Set<() => void>>} */
    this.listeners = new Map();
  }

  /** @param {string} topic @param {() => void} listener @returns {() => void} ends it */
  listen(topic, listener) {
    let found = this.listeners.get(topic);
    if (!found) this.listeners.set(topic, (found = new Set()));
    found.add(listener);
    return () => {
      found.delete(listener);
      if (!found.size && this.listeners.get(topic) === found) this.listeners.delete(topic);
    };
  }

  /** @param {Iterable<string>} topics */
  tell(topics) {
    for (const topic of topics) for (const listener of [...(this.listeners.get(topic) ?? [])]) listener();
  }
}

/** @param {string} runId @param {string} chainId */
export function chainTopic(runId, chainId) {
  return `chain\n${chainKey(runId, chainId)}`;
}

/** The topics of what is marked. @param {import("./store.js").Marks} marks */
export function topicsOf(marks) {
  const topics = [...marks.chains].map((key) => `chain\n${key}`);
  for (const run of marks.rows) topics.push(`rows\n${run}`);
  if (marks.runs.size) topics.push("runs");
  if (marks.steps.size || marks.runs.size) topics.push("steps");
  if (marks.events) topics.push("events");
  if (marks.session) topics.push("session");
  return topics;
}
