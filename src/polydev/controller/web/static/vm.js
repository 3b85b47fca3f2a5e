// The page of one VM: live console, screenshots, and ending its session.

import { Problem, ask, clearNotice, problemOf, sentence, showProblem, textsOf } from "./requests_and_notices.js";
import { follow } from "./console.js";

const text = textsOf("machine-texts");
const summary = document.getElementById("summary");
const { vm, session } = summary.dataset;
const dialog = document.getElementById("confirm-end");

// The summary is replaced every few seconds, so events of its buttons are handled outside of it.
summary.addEventListener("click", (event) => {
  if (event.target.id === "end-session") dialog.showModal();
  if (event.target.id === "open-viewer") openViewer();
});

dialog.addEventListener("close", async () => {
  const isMeant = dialog.returnValue === "yes";
  dialog.returnValue = "";
  if (!isMeant) return;
  try {
    await ask(`/api/auth/session/${session}`, { method: "DELETE" });
    clearNotice();
    summary.dispatchEvent(new Event("changed"));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem);
  }
});

/** Open the session's page by a read-only link. */
async function openViewer() {
  // Opened at once: after an answer it would be a pop-up that browsers block.
  const opened = window.open("about:blank", "_blank");
  try {
    const body = { purpose: "page", viewOnly: true };
    const { url } = await ask(`/api/auth/session/${session}/tickets`, { method: "POST", body });
    if (opened) opened.location = url;
  } catch (problem) {
    opened?.close();
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem);
  }
}

function said({ message, hint }) {
  return [message, hint].filter(Boolean).map(sentence).join(" ");
}

const picture = document.getElementById("screen");
const words = document.getElementById("screen-problem");
const button = document.getElementById("take-screenshot");

button.addEventListener("click", async () => {
  button.disabled = true;
  words.textContent = text("taking");
  try {
    const answer = await fetch(`/api/vm/${vm}/screenshot`, { credentials: "same-origin" });
    if (!answer.ok) throw await problemOf(answer);
    const former = picture.src;
    picture.src = URL.createObjectURL(await answer.blob());
    if (former) URL.revokeObjectURL(former);
    picture.hidden = false;
    words.textContent = text("taken", { at: new Date().toLocaleTimeString() });
  } catch (error) {
    words.textContent = error instanceof Problem ? said(error) : text("no_picture");
    if (error.status === 401) showProblem(error);
  } finally {
    button.disabled = false;
  }
});

const shown = follow(`/api/vm/${vm}/console`, document.getElementById("console"), (state, values) => {
  document.getElementById("console-state").textContent = text(state, values);
});
const pause = document.getElementById("pause-console");

pause.addEventListener("click", () => {
  const isPaused = shown.toggle();
  pause.textContent = text(isPaused ? "go_on" : "pause");
  pause.setAttribute("aria-pressed", String(isPaused));
});
