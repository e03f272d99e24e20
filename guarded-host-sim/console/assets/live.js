// Shows what has changed without a press of the reload button. Nothing depends on it.
"use strict";

const events = new EventSource("/events");
let waiting = false;

events.addEventListener("changed", () => {
  if (waiting) return;
  waiting = true;
  setTimeout(refresh, 200);
});

async function refresh() {
  waiting = false;
  const parts = document.querySelectorAll("[data-live]");
  if (parts.length === 0) return;
  let text;
  try {
    const answer = await fetch(location.href, { headers: { "x-refresh": "1" }, redirect: "error" });
    if (!answer.ok) return;
    text = await answer.text();
  } catch {
    return;
  }
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const part of parts) {
    const fresh = page.getElementById(part.id);
    // A person who is inside a part keeps their place.
    if (!fresh || fresh.innerHTML === part.innerHTML || part.contains(document.activeElement)) continue;
    part.replaceChildren(...fresh.childNodes);
  }
}
