// The connection to the VM's screen as a state machine. Pure: each event carries its time.
//
// phase       idle, connecting, connected, waiting (for the next attempt), not-ready (for the VM),
//             given-up (for the user), over (for good)
// attempt     how many attempts have failed in a row
// code        the relay's close code if it is not connected, or 0
// reason      the close reason, or ""
// until       while waiting: when the next attempt begins, in ms since 1970

import { PAUSES_SECONDS } from "../retry_pauses.js";

export const STABLE_MILLISECONDS = 10_000;

const NOT_ALLOWED = 4403;
const UNKNOWN_SESSION = 4404;
export const SESSION_OVER = 4410;
const NOT_READY = 4425;
const FOR_GOOD = [NOT_ALLOWED, UNKNOWN_SESSION, SESSION_OVER];
// HTTP statuses of refused tickets for which retrying does not help.
const REFUSALS = [401, 403, 404, 410];

export const IDLE = Object.freeze({ phase: "idle", attempt: 0, code: 0, reason: "" });

/**
 * Return the state after an event:
 * connect            an attempt begins, the first one or one after a pause
 * anew               reconnect now: the user wants it, or the network or the VM is back
 * opened { at }      the connection is open
 * lost { at, code, reason }   the connection ended, or the attempt failed
 * refused { status, reason }  the user gets no ticket
 */
export function next(state, event) {
  switch (event.kind) {
    case "connect":
      return state.phase === "over" ? state : { ...state, phase: "connecting" };
    case "anew":
      return state.phase === "over" ? state : { ...IDLE, phase: "connecting" };
    case "opened":
      return { ...state, phase: "connected", since: event.at, code: 0, reason: "" };
    case "lost":
      return afterLoss(state, event);
    case "refused":
      if (!REFUSALS.includes(event.status)) return afterLoss(state, { ...event, code: 0 });
      return { ...state, phase: "over", code: 4000 + event.status, reason: event.reason };
    default:
      throw new Error(`no such event: ${event.kind}`);
  }
}

function afterLoss(state, { at, code, reason }) {
  const told = { code, reason: reason ?? "" };
  if (state.phase === "over") return state;
  if (FOR_GOOD.includes(code)) return { ...IDLE, ...told, phase: "over" };
  if (code === NOT_READY) return { ...IDLE, ...told, phase: "not-ready" };
  const wasStable = state.phase === "connected" && at - state.since >= STABLE_MILLISECONDS;
  const failed = wasStable ? 0 : state.attempt;
  if (failed >= PAUSES_SECONDS.length) return { ...IDLE, ...told, phase: "given-up" };
  const until = at + PAUSES_SECONDS[failed] * 1000;
  return { ...told, phase: "waiting", attempt: failed + 1, until };
}

/** Return the text for a state: its name and values. */
export function words(state, now) {
  switch (state.phase) {
    case "waiting":
      return [
        "connection.waiting",
        {
          seconds: Math.max(0, Math.ceil((state.until - now) / 1000)),
          attempt: state.attempt,
          most: PAUSES_SECONDS.length,
        },
      ];
    case "not-ready":
    case "given-up":
    case "connected":
    case "connecting":
      return [`connection.${state.phase}`, {}];
    default:
      return ["connection.idle", {}];
  }
}
