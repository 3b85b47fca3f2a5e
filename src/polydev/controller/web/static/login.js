// A one-time link has its code behind the address's #, which no server and no log ever sees.

const given = new URLSearchParams(location.hash.slice(1));
const form = document.getElementById("by-link");

/** Go on where the browser is signed in already: after another site's link it did not say so. */
async function goOn() {
  const answer = await fetch("/login/state", { credentials: "same-origin" });
  if (answer.ok && (await answer.json()).signedIn) location.replace(form.elements.next.value);
}

if (given.get("code")) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.code.value = given.get("code");
  if (given.get("next")) form.elements.next.value = given.get("next");
  form.hidden = false;
  form.querySelector("button").focus();
  form.requestSubmit();
} else if (!document.querySelector(".problem")) {
  await goOn();
}
