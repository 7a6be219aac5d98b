// The token of a link: out of the address before anything is drawn, and kept for this tab alone.
import assert from "node:assert/strict";
import { test } from "node:test";

import { forgetToken, splitHash, storageKey, takeToken } from "../../src/rollcast/serve/page/token.js";

/** A window as far as `token.js` needs one. */
function windowAt(hash, { pathname = "/", search = "", kept = new Map(), broken = false } = {}) {
  const refuse = () => {
    throw new Error("SecurityError");
  };
  const replaced = [];
  return {
    kept,
    replaced,
    location: { hash, pathname, search },
    history: { replaceState: (_state, _title, url) => replaced.push(url) },
    sessionStorage: broken
      ? { getItem: refuse, setItem: refuse, removeItem: refuse }
      : {
          getItem: (key) => kept.get(key) ?? null,
          setItem: (key, value) => kept.set(key, value),
          removeItem: (key) => kept.delete(key),
        },
  };
}

test("a fragment with a token is split, and any other stays as it is", () => {
  assert.deepEqual(splitHash("#token=abc-_1"), { token: "abc-_1", hash: "" });
  assert.deepEqual(splitHash("#token=a%2Bb"), { token: "a+b", hash: "" });
  assert.deepEqual(splitHash("#token=abc&to=%2Frun%2Fr1%3Fstep%3D4"), { token: "abc", hash: "#/run/r1?step=4" });
  for (const hash of ["", "#", "#/run/r1", "#/run/token=abc", "#tokens=abc", "#/?token=abc"]) {
    assert.deepEqual(splitHash(hash), { token: null, hash });
  }
});

test("what is no token is not taken, but leaves the address all the same", () => {
  for (const hash of ["#token=", "#token=%", "#token=a b", "#token=%00", "#token=%C3%A4", "#token=a%0Ab"]) {
    assert.deepEqual(splitHash(hash), { token: null, hash: "" });
  }
});

test("a link cannot lead elsewhere than to a route", () => {
  for (const to of ["https://evil.example", "javascript:1", "evil", "%", ""]) {
    assert.equal(splitHash(`#token=abc&to=${to}`).hash, "");
  }
});

test("the token is kept, and the address has it no more", () => {
  const window = windowAt("#token=abc&to=/run/r1", { pathname: "/proxy/8765/", search: "?x=1" });
  assert.equal(takeToken(window), "abc");
  assert.deepEqual(window.replaced, ["/proxy/8765/?x=1#/run/r1"]);
  assert.deepEqual([...window.kept.values()], ["abc"]);
});

test("a reload finds it again, and a new link replaces it", () => {
  const { kept } = (() => {
    const first = windowAt("#token=abc");
    takeToken(first);
    return first;
  })();
  const reloaded = windowAt("#/run/r1", { kept });
  assert.equal(takeToken(reloaded), "abc");
  assert.deepEqual(reloaded.replaced, []);
  assert.equal(takeToken(windowAt("#token=new", { kept })), "new");
  assert.equal(takeToken(windowAt("", { kept })), "new");
});

test("two servers behind one origin do not share it", () => {
  const kept = new Map();
  takeToken(windowAt("#token=one", { pathname: "/proxy/1/", kept }));
  assert.equal(takeToken(windowAt("", { pathname: "/proxy/2/", kept })), null);
  assert.equal(storageKey("/proxy/1/index.html"), storageKey("/proxy/1/"));
});

test("a refused token is forgotten", () => {
  const window = windowAt("#token=abc");
  takeToken(window);
  forgetToken(window);
  assert.equal(takeToken(windowAt("", { kept: window.kept })), null);
});

test("a browser that keeps nothing has it until the reload", () => {
  assert.equal(takeToken(windowAt("#token=abc", { broken: true })), "abc");
  assert.equal(takeToken(windowAt("", { broken: true })), null);
  forgetToken(windowAt("", { broken: true }));
});
