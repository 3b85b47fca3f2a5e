// A user's tokens: let an admin revoke one, after a confirmation.

import { Problem, ask, showProblem } from "./requests_and_notices.js";

const dialog = document.getElementById("confirm-revoke");
let meant = "";

document.addEventListener("click", (event) => {
  const { revoke, name } = event.target.dataset ?? {};
  if (!revoke) return;
  meant = revoke;
  document.getElementById("revoked-name").textContent = name;
  dialog.showModal();
});

dialog.addEventListener("close", async () => {
  const isMeant = dialog.returnValue === "yes";
  dialog.returnValue = "";
  if (!isMeant) return;
  try {
    await ask(`/api/admin/tokens/${meant}`, { method: "DELETE" });
    location.reload();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem);
  }
});
