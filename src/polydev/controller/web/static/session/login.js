// How far the login of the session's tool is. Pure.
//
// state    none, starting, waiting (its page is open in the VM), done, failed { words }

export const NONE = Object.freeze({ state: "none", words: "" });

/** The login after the session's status changed; the session knows of logins that others began. */
export function afterSession(login, status) {
  if (status === "authenticated" || status === "completed") return { state: "done", words: "" };
  if (status === "oauth_pending" && login.state === "none") return { state: "starting", words: "" };
  return login;
}

/** The login after an answer of the API, or its Problem. */
export function afterAnswer(login, answer, problem) {
  if (problem && problem.status !== 502) return login; // it says nothing of the tool
  if (problem) return { state: "failed", words: problem.message };
  if (answer.status === "waiting" || answer.status === "done") {
    return { state: answer.status, words: "" };
  }
  return { state: "starting", words: "" };
}

/** After how many seconds to ask again; null: only when the user wants it. */
export function asksAgainSeconds(login) {
  return { starting: 2, waiting: 10 }[login.state] ?? null;
}
