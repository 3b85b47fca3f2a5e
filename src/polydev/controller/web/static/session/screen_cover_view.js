// What the page shows in place of the screen, depending on its state. Pure.
//
// kind       loading, coming, connecting, screen, lost, given-up, over, refused
// title, text, detail    names of texts with their values, or { said } by the controller
// actions    names of the buttons: now, again, start, signin, home

import { isComing, isLive, progress } from "./boot_progress.js";
import { words } from "./connection_state.js";
import { receiptText } from "./login_progress.js";

const OVER_TEXTS = ["failed", "expired", "terminated", "completed"];

/**
 * session    the API's answer, null before the first one
 * refusal    the Problem that ended it for this user, else null
 * canStart   whether the user may start sessions: whoever came by a link may not
 */
export function viewOf({ session, connection, queued, refusal, canStart }, now) {
  if (refusal) return refused(refusal, canStart);
  if (!session) return { kind: "loading", title: ["loading"], actions: [] };
  if (!isLive(session)) return over(session, canStart);
  if (isComing(session)) {
    const { text, values, share, because } = progress(session, queued);
    const detail = because ? ["progress.boots_because", { because }] : undefined;
    return { kind: "coming", title: ["progress.title"], text: [text, values], detail, share, actions: [] };
  }
  return live(connection, now);
}

function live(connection, now) {
  const detail = words(connection, now);
  switch (connection.phase) {
    case "connected":
      return { kind: "screen", title: detail, actions: [] };
    case "waiting":
      return { kind: "lost", title: ["connection.lost"], text: why(connection), detail, actions: ["now"] };
    case "given-up":
      return { kind: "given-up", title: ["connection.lost"], text: why(connection), detail, actions: ["again"] };
    default:
      return { kind: "connecting", title: ["connection.connecting"], actions: [] };
  }
}

function why({ code, reason }) {
  return reason ? { said: reason } : [code === 1000 ? "connection.closed" : "connection.broke_off"];
}

function over(session, canStart) {
  const name = OVER_TEXTS.includes(session.status) ? session.status : "completed";
  const reason = session.failure?.reason ?? session.reason;
  const receipt = receiptText(session);
  const text = receipt ? [receipt.text, receipt.values] : [`over.${name}.text`];
  return {
    kind: "over",
    title: [`over.${name}.title`],
    text: reason ? { said: reason } : text,
    detail: [canStart ? "over.next" : "over.next_of_link"],
    actions: canStart ? ["start", "home"] : [],
  };
}

function refused(problem, canStart) {
  const isSignedOut = problem.status === 401 && canStart;
  return {
    kind: "refused",
    title: [isSignedOut ? "refused.signed_out" : "refused.title"],
    text: { said: problem.message },
    detail: problem.hint ? { said: problem.hint } : undefined,
    actions: isSignedOut ? ["signin"] : canStart ? ["home"] : [],
  };
}
