// Load the page again if one of its scripts or styles did not arrive, as when the user's network
// changes meanwhile: after 1, 2 and 4 seconds; then a button does it. Not a module: it has to run
// before the modules, and needs none of them. The count is in the history's state, which a reload
// keeps.

(() => {
  const PAUSES_SECONDS = [1, 2, 4];
  const { text, action } = document.currentScript.dataset;
  let isIncomplete = false;

  const count = (failures) => history.replaceState({ ...history.state, loadFailures: failures }, "");

  function offerReload() {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "compact";
    button.textContent = action;
    button.addEventListener("click", () => location.reload());
    const notice = document.getElementById("notice");
    notice.replaceChildren(paragraph, button);
    notice.hidden = false;
  }

  function onFailure({ target }) {
    const isNeeded = target instanceof HTMLScriptElement || target.rel === "stylesheet";
    if (isIncomplete || !isNeeded) return;
    isIncomplete = true;
    const failures = history.state?.loadFailures ?? 0;
    if (failures < PAUSES_SECONDS.length) {
      count(failures + 1);
      setTimeout(() => location.reload(), PAUSES_SECONDS[failures] * 1000);
    } else {
      count(0);
      if (document.readyState === "loading") addEventListener("DOMContentLoaded", offerReload);
      else offerReload();
    }
  }

  // Failures of elements do not bubble, so they are only seen on their way down.
  addEventListener("error", onFailure, true);
  addEventListener("load", () => {
    if (!isIncomplete && history.state?.loadFailures) count(0);
  });
})();
