// Light and dark: the button #theme and the key t; remembered where the browser lets a page do so.
const isTyping = event => /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
const hasModifier = event => event.ctrlKey || event.metaKey || event.altKey;

function remembered(theme = null) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return theme; // no storage, as in some browsers' pages from files
  }
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  remembered(root.dataset.theme);
}

if (["light", "dark"].includes(remembered())) document.documentElement.dataset.theme = remembered();
document.getElementById("theme").addEventListener("click", switchTheme);
addEventListener("keydown", event => {
  if (event.key === "t" && !isTyping(event) && !hasModifier(event)) switchTheme();
});
