// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors
//
// Asks for the page again every two seconds, and changes only what differs, so that the focus, a
// selection and the place on the page stay.
"use strict";
(function () {
  const interval = 2000;
  const place = document.getElementById("live");
  const button = document.createElement("button");
  const state = document.createElement("span");
  button.type = "button";
  state.setAttribute("role", "status");
  place.append(state, button);
  let isPaused = sessionStorage.getItem("paused") === "true";
  let timer = 0;

  function show(text) {
    if (state.textContent !== text) {
      state.textContent = text;
    }
    state.className = text === "live" ? "ok" : text === "paused" ? "" : "stale";
    button.textContent = isPaused ? "Resume" : "Pause";
    button.setAttribute("aria-label", isPaused ? "Resume live updates" : "Pause live updates");
  }

  function isSame(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName &&
      (a.nodeType !== Node.ELEMENT_NODE || a.id === b.id);
  }

  // Makes the children of one node those of another.
  function update(to, from) {
    const wanted = Array.from(from.childNodes);
    wanted.forEach(function (node, i) {
      const current = to.childNodes[i];
      if (!current) {
        to.appendChild(document.importNode(node, true));
      } else if (!isSame(current, node)) {
        to.replaceChild(document.importNode(node, true), current);
      } else if (node.nodeType !== Node.ELEMENT_NODE) {
        if (current.nodeValue !== node.nodeValue) {
          current.nodeValue = node.nodeValue;
        }
      } else if (!(node.nodeName === "SELECT" && current === document.activeElement)) {
        for (const a of Array.from(current.attributes)) {
          if (!node.hasAttribute(a.name)) {
            current.removeAttribute(a.name);
          }
        }
        for (const a of Array.from(node.attributes)) {
          if (current.getAttribute(a.name) !== a.value) {
            current.setAttribute(a.name, a.value);
          }
        }
        update(current, node);
      }
    });
    while (to.childNodes.length > wanted.length) {
      to.removeChild(to.lastChild);
    }
  }

  async function refresh() {
    const begin = Date.now();
    if (!isPaused && !document.hidden) {
      try {
        const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const main = page.querySelector("main");
        if (!isPaused && main) {
          update(document.querySelector("main"), main);
          update(document.querySelector("footer"), page.querySelector("footer"));
          show("live");
        } else if (!isPaused) {
          show("not updated: status " + answer.status);
        }
      } catch {
        show(isPaused ? "paused" : "not updated: no connection");
      }
    }
    window.clearTimeout(timer);
    timer = window.setTimeout(refresh, Math.max(500, interval - (Date.now() - begin)));
  }

  button.addEventListener("click", function () {
    isPaused = !isPaused;
    sessionStorage.setItem("paused", String(isPaused));
    show(isPaused ? "paused" : "live");
    if (!isPaused) {
      refresh();
    }
  });
  show(isPaused ? "paused" : "live");
  timer = window.setTimeout(refresh, interval);
})();
