import assert from "node:assert/strict";
import { test } from "node:test";

import { PAUSES_SECONDS } from "../../../src/polydev/controller/web/static/retry_pauses.js";
import { IDLE, STABLE_MILLISECONDS, next, words } from "../../../src/polydev/controller/web/static/session/connection_state.js";

const START = 1_000_000;
const BROKE_OFF = { code: 1006, reason: "" };
const opened = (state, at = START) => next(state, { kind: "opened", at });
const lost = (state, at = START, end = BROKE_OFF) => next(state, { kind: "lost", at, ...end });
const connecting = next(IDLE, { kind: "connect" });

test("attempts follow each other after 1, 2, 4, 8 and 16 s, then the user has to say so", () => {
  let state = opened(connecting);
  const pauses = [];
  for (;;) {
    state = lost(state);
    if (state.phase !== "waiting") break;
    pauses.push((state.until - START) / 1000);
    assert.equal(state.attempt, pauses.length);
    state = next(state, { kind: "connect" });
    assert.equal(state.phase, "connecting");
  }
  assert.deepEqual(pauses, [1, 2, 4, 8, 16]);
  assert.deepEqual(pauses, PAUSES_SECONDS);
  assert.equal(state.phase, "given-up");
  assert.equal(next(state, { kind: "anew" }).attempt, 0);
});

test("a connection that held begins again with 1 s, one that did not goes on", () => {
  const third = { ...connecting, attempt: 3 };
  const held = lost(opened(third), START + STABLE_MILLISECONDS);
  assert.equal(held.until, START + STABLE_MILLISECONDS + 1000);
  const short = lost(opened(third), START + STABLE_MILLISECONDS - 1);
  assert.equal(short.attempt, 4);
});

test("the code and the reason of the last loss are kept until there is a screen", () => {
  const end = { code: 1011, reason: "the VM's screen does not answer" };
  const waiting = lost(opened(connecting), START, end);
  assert.deepEqual([waiting.code, waiting.reason], [1011, "the VM's screen does not answer"]);
  assert.equal(next(waiting, { kind: "connect" }).reason, end.reason);
  assert.equal(opened(next(waiting, { kind: "connect" })).reason, "");
});

for (const code of [4403, 4404, 4410]) {
  test(`after ${code} there is no other attempt`, () => {
    const over = lost(opened(connecting), START, { code, reason: "why" });
    assert.deepEqual([over.phase, over.code, over.reason], ["over", code, "why"]);
    for (const kind of ["connect", "anew"]) assert.equal(next(over, { kind }).phase, "over");
    assert.equal(lost(over).phase, "over");
  });
}

test("a VM that is not ready is waited for, without attempts", () => {
  assert.equal(lost(connecting, START, { code: 4425, reason: "booting" }).phase, "not-ready");
});

test("an expired ticket is no end: the next attempt takes another one", () => {
  assert.equal(lost(connecting, START, { code: 4401, reason: "too old" }).phase, "waiting");
});

for (const status of [401, 403, 404, 410]) {
  test(`a ticket refused with ${status} ends it`, () => {
    const over = next(connecting, { kind: "refused", at: START, status, reason: "why" });
    assert.deepEqual([over.phase, over.code], ["over", 4000 + status]);
  });
}

for (const status of [0, 429, 500, 503]) {
  test(`without a ticket, status ${status}, it is tried again`, () => {
    const state = next(connecting, { kind: "refused", at: START, status, reason: "why" });
    assert.deepEqual([state.phase, state.reason, state.attempt], ["waiting", "why", 1]);
  });
}

test("the words count the seconds down and never below none", () => {
  const waiting = lost(lost(lost(connecting)));
  const most = { attempt: 3, most: 5 };
  assert.deepEqual(words(waiting, START), ["connection.waiting", { seconds: 4, ...most }]);
  assert.deepEqual(words(waiting, START + 3001), ["connection.waiting", { seconds: 1, ...most }]);
  assert.deepEqual(words(waiting, START + 9000), ["connection.waiting", { seconds: 0, ...most }]);
});

test("an unknown event is a bug", () => {
  assert.throws(() => next(IDLE, { kind: "closed" }), /no such event/);
});
