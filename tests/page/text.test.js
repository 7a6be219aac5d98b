// Text from models and tools, made fit to show.

import assert from "node:assert/strict";
import { test } from "node:test";

import { length, slice, Tail, weight } from "../../src/rollcast/serve/page/bounded.js";
import { callLine, fold, oneLine, splitCalls, visible } from "../../src/rollcast/serve/page/text.js";

test("characters that cannot be seen become escapes, as in Python", () => {
  assert.equal(visible("a\x1b[31mb\u202ec\u200bd\r\x00"), "a\\x1b[31mb\\u202ec\\u200bd\\r\\x00");
  assert.equal(visible("\u{e0041}\ufe00\ud800"), "\\U000e0041\\ufe00\\ud800");
});

test("line breaks, tabs, emoji and letters of all scripts stay", () => {
  const text = "Zeile\n\tÜber 数字 שלום 🤔 e\u0301\u00a0x";
  assert.equal(visible(text), text);
});

test("one line has no more characters than asked for, and no half ones", () => {
  assert.equal(oneLine("a\n b\t\tc", 10), "a b c");
  assert.equal(oneLine("x".repeat(100), 10), `${"x".repeat(9)}…`);
  assert.equal([...oneLine("🤔".repeat(100), 10)].length, 10);
  assert.ok(oneLine("🤔".repeat(100), 10).isWellFormed());
  assert.equal(oneLine(" \n ", 10), "");
});

test("calls and thoughts are found where they are marked, also while they are written", () => {
  const call = '<tool_call>\n{"name": "guess"}\n</tool_call>';
  const text = `<think>hm</think>I guess.${call}`;
  assert.deepEqual(splitCalls(text).map((part) => [part.kind, part.text]), [["thought", "<think>hm</think>"], ["text", "I guess."], ["call", call]]);
  const open = splitCalls('Now <tool_call>\n{"na');
  assert.deepEqual(open.map((part) => [part.kind, part.complete]), [["text", true], ["call", false]]);
});

test("the parts of any text are the text", () => {
  for (const text of ["", "<", "<tool_call>", "</tool_call>x", "<think><tool_call></think></tool_call>", "a<tool_call>b</tool_call><tool_call>c</tool_call>d"]) {
    const parts = splitCalls(text);
    assert.equal(parts.map((part) => part.text).join(""), text);
    for (const part of parts) assert.equal(text.slice(part.at, part.at + part.text.length), part.text);
  }
});

test("a call is written as a person writes it", () => {
  assert.equal(callLine("guess", { number: 8 }), "guess(number=8)");
  assert.equal(callLine("say", { text: "a\nb", loud: true }), 'say(text="a\\nb", loud=true)');
  assert.equal(callLine("broken", '{"a": 1'), 'broken({"a": 1)');
  assert.equal(callLine("none", {}), "none()");
});

test("a long text is folded in its middle, and nothing of it is lost", () => {
  const text = Array.from({ length: 100 }, (_, i) => `line ${i}\n`).join("");
  const { head, hidden, hiddenLines, tail } = fold(text, { lines: 12 });
  assert.ok(head.startsWith("line 0\n") && head.endsWith("line 8\n"), head);
  assert.ok(tail.startsWith("line 97\n") && tail.endsWith("line 99\n"), tail);
  assert.equal(hiddenLines, 88);
  assert.equal(head.length + hidden + tail.length, text.length);
  assert.deepEqual(fold("short"), { head: "short", hidden: 0, hiddenLines: 0, tail: "" });
});

test("one line of a megabyte is folded too, between characters", () => {
  const { head, hidden, tail } = fold("🤔".repeat(500_000));
  assert.ok(head.length <= 4_001 && tail.length <= 1_001 && hidden > 900_000);
  assert.ok(head.isWellFormed() && tail.isWellFormed());
});

test("lengths and places count characters, not code units", () => {
  assert.equal(length("a🤔b"), 3);
  assert.equal(slice("a🤔b", 1), "🤔b");
  assert.equal(slice("a🤔b", 0, 2), "a🤔");
  assert.equal(weight({ a: ["🤔", null] }), 1 + 1 + (1 + 2 + 1));
});

test("a tail tells what is new since a place, however it came", () => {
  const tail = new Tail(20);
  let shown = "";
  let at = 0;
  let redrawn = 0;
  for (let i = 0; i < 200; i += 1) {
    tail.append(`${i}🤔`);
    if (i % 3) continue;
    const more = tail.after(at);
    if (more === null) redrawn += 1;
    shown = more === null ? tail.text : shown + more;
    at = tail.end;
    assert.ok(shown.endsWith(tail.text), `${shown} / ${tail.text}`);
  }
  assert.equal(redrawn, 0);
  assert.equal(tail.after(0), null);
  assert.equal(tail.after(tail.end), "");
  assert.equal(tail.after(tail.end + 1), null);
});
