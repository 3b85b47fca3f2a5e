// The start page: start and end sessions, and delete stored logins.

import { Problem, ask, sentence, showProblem, textsOf } from "./requests_and_notices.js";
import { confirmed } from "./dialogs.js";

const t = textsOf("start-texts");
const providers = document.getElementById("providers");
const problemBox = document.getElementById("start-problem");

async function start(button, provider, useStoredCredentials) {
  const buttons = document.querySelectorAll("[data-start], [data-use]");
  for (const each of buttons) each.disabled = true;
  button.setAttribute("aria-busy", "true");
  problemBox.hidden = true;
  try {
    const body = { userId: providers.dataset.user, provider, useStoredCredentials };
    const { id } = await ask("/api/auth/start", { method: "POST", body });
    location.assign(`/session/${id}`);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    button.removeAttribute("aria-busy");
    for (const each of buttons) each.disabled = false;
    tell(problem);
    button.focus();
  }
}

/** Show why no session was started, and what to do. */
function tell(problem) {
  if (problem.status === 401) return showProblem(problem);
  const lines = [t("not_started", { detail: sentence(problem.message) })];
  if (problem.hint) lines.push(sentence(problem.hint));
  problemBox.replaceChildren(
    ...lines.map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line;
      return paragraph;
    }),
  );
  problemBox.hidden = false;
  problemBox.scrollIntoView({ block: "nearest" });
  return undefined;
}

async function remove(path, question, listId) {
  if (!(await confirmed(question))) return;
  try {
    await ask(path, { method: "DELETE" });
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem);
  }
  document.getElementById(listId).dispatchEvent(new Event("refresh"));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const { start: provider, use, end, forget } = button?.dataset ?? {};
  if (provider) start(button, provider, false);
  if (use) start(button, use, true);
  if (end) {
    const question = { title: t("end_title"), text: t("end_text"), action: t("end") };
    remove(`/api/auth/session/${end}`, question, "sessions");
  }
  if (forget) {
    const question = { title: t("forget_title"), text: t("forget_text"), action: t("forget") };
    remove(`/api/auth/credentials/${forget}`, question, "logins");
  }
});
