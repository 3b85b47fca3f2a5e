// Ask the user before an action that cannot be undone.

/** Ask in the page's dialog. Return whether the user agreed; Escape and `cancel` mean no. */
export function confirmed({ title, text, action }) {
  const dialog = document.getElementById("confirm");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector('[value="yes"]').textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
