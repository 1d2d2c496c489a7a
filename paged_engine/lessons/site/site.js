// Every page of the site: the light or dark theme, and replays where live views stood.

"use strict";

(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function remembered() {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // no storage, as in some private windows
    }
  }

  function isDark() {
    return (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  }

  function showTheme() {
    const dark = isDark();
    if (document.body) document.body.dataset.jpThemeLight = String(!dark); // replays watch it
    const button = document.querySelector(".site-theme");
    if (!button) return;
    button.hidden = false;
    button.textContent = dark ? "light" : "dark";
    button.setAttribute("aria-label", `show this site ${dark ? "light" : "dark"}`);
  }

  function changeTheme() {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // it holds for this page only
    }
    showTheme();
  }

  // In the middle of the time in which most blocks are in use: there is something to see.
  function busiest(view) {
    let [frames, most] = [[0], -1];
    for (let count = 1; count <= view.history.length; count++) {
      const { used } = view.history.at(count);
      if (used > most) [frames, most] = [[], used];
      if (used === most) frames.push(count);
    }
    return frames[frames.length >> 1];
  }

  async function start(place) {
    const { View, unpack } = window.pagedEngine;
    const run = place.querySelector("script").textContent;
    const document = await unpack(Uint8Array.from(atob(run), (c) => c.charCodeAt(0)));
    const view = new View(place.querySelector(".site-view"), {
      parts: JSON.parse(place.dataset.parts), send: null });
    view.setStatus({ about: place.dataset.about });
    view.load(document);
    view.goTo(busiest(view));
    place.view = view; // for tests, and for the curious
  }

  const theme = remembered();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  system.addEventListener("change", showTheme);
  document.addEventListener("DOMContentLoaded", () => {
    showTheme();
    document.querySelector(".site-theme")?.addEventListener("click", changeTheme);
    document.querySelectorAll(".site-replay").forEach(start);
  });
})();
