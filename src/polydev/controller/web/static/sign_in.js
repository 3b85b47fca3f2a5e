// A one-time link has its code behind the # of the URL, which is not sent to servers.

const given = new URLSearchParams(location.hash.slice(1));
const form = document.getElementById("by-link");

async function isSignedIn() {
  const answer = await fetch("/login/state", { credentials: "same-origin" });
  return answer.ok && (await answer.json()).signedIn;
}

if (given.get("code")) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.code.value = given.get("code");
  if (given.get("next")) form.elements.next.value = given.get("next");
  form.hidden = false;
  form.querySelector("button").focus();
  // Who is signed in already decides: the link may be of somebody who wants them to be another.
  if (!(await isSignedIn())) form.requestSubmit();
} else if (!document.querySelector(".problem")) {
  // After another site's link the browser did not say that it is signed in.
  if (await isSignedIn()) location.replace(form.elements.next.value);
}
