// A one-time link has its code behind the address's #, which no server and no log ever sees.

const given = new URLSearchParams(location.hash.slice(1));
const form = document.getElementById("by-link");

if (given.get("code")) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.code.value = given.get("code");
  if (given.get("next")) form.elements.next.value = given.get("next");
  form.hidden = false;
  form.querySelector("button").focus();
  form.requestSubmit();
}
