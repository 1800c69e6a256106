"use strict";
// What all pages build their elements and numbers with. Texts become text nodes, never markup.

// element("button", {class: "x", onclick: f}, child, "text"); a value of null or false sets nothing.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null));
  return made;
}

// Controls, marks that turn the direction of text, half characters: shown by their number.
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]/gu;
const codePoint = sign => `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const seen = text => text.replace(UNSEEN, codePoint);

// A token that stands alone: its spaces and line breaks are seen too.
const visible = token => seen(token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣"));
const chip = (token, title = null) => element("span", {class: "token", title}, visible(token));

// Three decimals below 1, two from there on; a minus that is as wide as a plus.
function fixed(value, decimals = null) {
  if (value === null) return "–";
  return value.toFixed(decimals ?? (Math.abs(value) < 1 ? 3 : 2)).replace("-", "−");
}
const signed = (value, decimals = null) => (value > 0 ? "+" : "") + fixed(value, decimals);
function percent(share) {
  if (share === null) return "–";
  const value = 100 * share;
  if (value > 0 && value < .05) return "<0.1 %";
  return `${value < 9.95 && value > 0 ? value.toFixed(1) : value.toFixed(0)} %`;
}
const count = number => number.toLocaleString("en");
