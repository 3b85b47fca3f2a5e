import assert from "node:assert/strict";
import { test } from "node:test";

import { IDLE } from "../../../src/polydev/controller/web/static/session/connection_state.js";
import { clock, countdown } from "../../../src/polydev/controller/web/static/session/countdown.js";
import { EventReader } from "../../../src/polydev/controller/web/static/session/event_parser.js";
import {
  NONE,
  afterAnswer,
  afterSession,
  asksAgainSeconds,
  completesInSeconds,
  receiptText,
  textOf,
} from "../../../src/polydev/controller/web/static/session/login_progress.js";
import { progress } from "../../../src/polydev/controller/web/static/session/boot_progress.js";
import { edits } from "../../../src/polydev/controller/web/static/session/input_diff.js";
import { viewOf } from "../../../src/polydev/controller/web/static/session/screen_cover_view.js";

const BOOT = { stage: "none", template: null, bootsBecause: null };
const NOW = Date.parse("2026-11-21T10:00:00Z");
const LIMITS = { idleSeconds: 300, maxSeconds: 3600 };

const RECEIVED = { credentialsReceipt: { sha256: "ab".repeat(32), recipient: null } };

function session(status, more = {}) {
  return { status, reason: null, failure: null, boot: BOOT, credentialsReceipt: null, ...more };
}

function ends(inSeconds, ageSeconds) {
  const at = (seconds) => new Date(NOW + seconds * 1000).toISOString();
  return { expiresAt: at(inSeconds), createdAt: at(-ageSeconds) };
}

test("the end of the longest life is told five minutes before, and cannot be put off", () => {
  assert.equal(countdown(ends(301, 3299), LIMITS, NOW), null);
  assert.deepEqual(countdown(ends(300, 3300), LIMITS, NOW), { seconds: 300, canStay: false });
  assert.deepEqual(countdown(ends(-5, 3605), LIMITS, NOW), { seconds: 0, canStay: false });
});

test("the end for want of use is told once half of the time is over, and can be put off", () => {
  assert.equal(countdown(ends(299, 60), LIMITS, NOW), null);
  assert.equal(countdown(ends(151, 60), LIMITS, NOW), null);
  assert.deepEqual(countdown(ends(150, 60), LIMITS, NOW), { seconds: 150, canStay: true });
  const long = { idleSeconds: 7200, maxSeconds: 14400 };
  assert.equal(countdown(ends(301, 60), long, NOW), null);
  assert.deepEqual(countdown(ends(300, 60), long, NOW), { seconds: 300, canStay: true });
});

test("seconds are shown as clocks do", () => {
  assert.deepEqual([0, 7, 60, 247].map(clock), ["0:00", "0:07", "1:00", "4:07"]);
});

test("a VM that waits has a place, and a reason where there is one", () => {
  const told = (queued) => progress(session("vm_creating"), queued);
  assert.equal(told({ place: 2 }).text, "progress.queued");
  assert.equal(told({ place: 2, because: "memory" }).text, "progress.queued_because");
  assert.equal(told(null).text, "progress.none");
  assert.equal(progress(session("vm_starting"), { place: 2 }).text, "progress.none");
});

test("a boot grows from stage to stage, a resumed VM has no share", () => {
  const shares = ["none", "kernel", "init", "network", "services", "ready"].map(
    (stage) => progress(session("vm_starting", { boot: { ...BOOT, stage } }), null).share,
  );
  assert.deepEqual(shares, [...shares].sort((a, b) => a - b));
  assert.ok(shares[0] > 0);
  assert.equal(shares[5], 1);
  const resumed = session("vm_starting", { boot: { ...BOOT, template: "t" } });
  assert.deepEqual([progress(resumed, null).text, progress(resumed, null).share], ["progress.resuming", null]);
});

test("a login goes from none to handed over, by whoever tells", () => {
  assert.equal(afterSession(NONE, session("vm_created")).state, "none");
  assert.equal(afterSession(NONE, session("oauth_pending")).state, "starting");
  const waiting = afterAnswer(NONE, { status: "waiting", url: "https://x" }, null);
  assert.deepEqual(waiting, { ...NONE, state: "waiting", url: "https://x" });
  assert.equal(afterSession(waiting, session("oauth_pending")), waiting);
  assert.equal(afterAnswer(NONE, { status: "vm_starting" }, null).state, "starting");
  const over = afterSession(waiting, session("authenticated", RECEIVED));
  assert.equal(over.state, "handed_over");
  assert.equal(afterAnswer(over, { status: "done", detail: "x" }, null), over);
});

test("credentials that nobody has got stay in the VM, and the login says why", () => {
  const done = afterAnswer(NONE, { status: "done", detail: "no key" }, null);
  assert.deepEqual([done.state, done.words], ["done", "no key"]);
  const kept = session("authenticated", { loginDetail: "no key" });
  assert.deepEqual(afterSession(NONE, kept), done);
  assert.equal(afterSession(NONE, session("authenticated")).words, "");
});

test("stored credentials are given to the tool, which is logged in or says why not", () => {
  const created = (storedCredentials) => session("vm_created", { storedCredentials, loginDetail: "expired" });
  const injecting = afterSession(NONE, created("wanted"));
  assert.equal(injecting.state, "injecting");
  assert.equal(afterAnswer(injecting, { status: "starting" }, null), injecting);
  const injected = session("authenticated", { storedCredentials: "injected" });
  assert.equal(afterSession(injecting, injected).state, "injected");
  const refused = afterSession(injecting, created("refused"));
  assert.deepEqual([refused.state, refused.words], ["none", "expired"]);
  assert.equal(afterSession(refused, session("oauth_pending")).state, "starting");
});

test("a device code and a code to paste come with the login", () => {
  const answer = { status: "waiting", url: "https://x", deviceCode: "AB-12", acceptsCode: true };
  const waiting = afterAnswer(NONE, answer, null);
  assert.deepEqual([waiting.deviceCode, waiting.acceptsCode], ["AB-12", true]);
  assert.deepEqual([textOf(waiting), textOf({ ...waiting, deviceCode: "" })], ["device", "waiting"]);
});

test("a failed login has the tool's words; no answer at all says nothing of the tool", () => {
  const starting = { ...NONE, state: "starting" };
  const failed = afterAnswer(starting, null, { status: 502, message: "it said no" });
  assert.deepEqual([failed.state, failed.words], ["failed", "it said no"]);
  assert.equal(afterAnswer(starting, null, { status: 0, message: "no answer" }), starting);
  assert.deepEqual(["none", "starting", "waiting", "done", "failed"].map((state) => asksAgainSeconds({ state })), [null, 2, 10, null, null]);
});

test("a receipt says who can open the credentials", () => {
  const { credentialsReceipt } = RECEIVED;
  assert.equal(receiptText(session("oauth_pending")), null);
  assert.equal(receiptText(session("authenticated", RECEIVED)).text, "login.receipt.stored");
  const sealed = { credentialsReceipt: { ...credentialsReceipt, recipient: "age1x" } };
  const { text, values } = receiptText(session("completed", sealed));
  assert.deepEqual([text, values], ["login.receipt.sealed", { fingerprint: "ab".repeat(8), recipient: "age1x" }]);
});

test("the end of a session that has done its work is counted down", () => {
  const completesAt = new Date(NOW + 9500).toISOString();
  assert.equal(completesInSeconds(session("authenticated", { completesAt }), NOW), 10);
  assert.equal(completesInSeconds(session("authenticated", { completesAt }), NOW + 20000), 0);
  assert.equal(completesInSeconds(session("authenticated", { completesAt: null }), NOW), null);
  assert.equal(completesInSeconds(session("completed", { completesAt }), NOW), null);
});

test("events are read whole however the text is cut", () => {
  const text = 'retry: 1000\n\n: ping\n\nid: 7\nevent: state\ndata: {"state": "vm_created"}\n\nevent: over\ndata: {}\n\n';
  const expected = [
    { id: "7", kind: "state", data: '{"state": "vm_created"}' },
    { id: "", kind: "over", data: "{}" },
  ];
  for (let size = 1; size <= text.length; size += 1) {
    const reader = new EventReader();
    const read = [];
    for (let at = 0; at < text.length; at += size) read.push(...reader.read(text.slice(at, at + size)));
    assert.deepEqual(read, expected);
  }
});

const known = { connection: IDLE, queued: null, refusal: null, canStart: true };

test("a session that is over says why and what to do", () => {
  const failure = { reason: "the VM's process ended: signal 9" };
  const view = viewOf({ ...known, session: session("failed", { failure, reason: "x" }) }, NOW);
  assert.deepEqual([view.kind, view.text], ["over", { said: failure.reason }]);
  const complete = viewOf({ ...known, session: session("completed", RECEIVED) }, NOW);
  assert.equal(complete.text[0], "login.receipt.stored");
  assert.deepEqual(view.actions, ["start", "home"]);
  const byLink = viewOf({ ...known, canStart: false, session: session("terminated") }, NOW);
  assert.deepEqual([byLink.text, byLink.actions], [["over.terminated.text"], []]);
});

test("whoever may not see the session is told so, and how to sign in again", () => {
  const refusal = { status: 403, message: "access denied: the session belongs to another user", hint: "" };
  assert.deepEqual(viewOf({ ...known, refusal }, NOW).actions, ["home"]);
  assert.deepEqual(viewOf({ ...known, refusal: { ...refusal, status: 401 } }, NOW).actions, ["signin"]);
});

test("a lost connection has the controller's words, or says that there were none", () => {
  const lost = (code, reason) => {
    const connection = { phase: "waiting", attempt: 1, until: NOW + 1000, code, reason };
    return viewOf({ ...known, connection, session: session("vm_created") }, NOW);
  };
  assert.deepEqual(lost(1011, "the VM is gone").text, { said: "the VM is gone" });
  assert.deepEqual(lost(1006, "").text, ["connection.broke_off"]);
  assert.deepEqual(lost(1000, "").text, ["connection.closed"]);
  assert.deepEqual(lost(1006, "").actions, ["now"]);
});

test("what an input changed becomes characters to take back and to type", () => {
  assert.deepEqual(edits("ab", "abc"), { deleted: 0, typed: ["c"] });
  assert.deepEqual(edits("abc", "ab"), { deleted: 1, typed: [] });
  assert.deepEqual(edits("teh", "the"), { deleted: 2, typed: ["h", "e"] });
  assert.deepEqual(edits("a😀", "a😁b"), { deleted: 1, typed: ["😁", "b"] });
  assert.deepEqual(edits("same", "same"), { deleted: 0, typed: [] });
});
