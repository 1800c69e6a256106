// A stretch of text, token by token, coloured by the activations on it; needs dom.js and token_strip.css.
//   tokens: texts; special: whether each is one of the tokenizer's own; activations: null where none is read
//   maximum: what has the full colour; peak: number of the token to underline, or null
//   targetFrom: number of the first token that the model is to write, or null
function tokenStrip({tokens, special = [], activations = [], maximum, peak = null, targetFrom = null,
  cutLeft = false, cutRight = false}) {
  const strip = element("div", {class: "strip", dir: "auto"});
  if (cutLeft) strip.append(element("span", {class: "muted"}, "…"));
  tokens.forEach((text, i) => {
    const activation = activations[i] ?? null;
    if (i === targetFrom && i > 0) strip.append(element("br"), element("span", {class: "muted", title: "from here on the model is to write"}, "→ "));
    strip.append(stripToken(text, special[i], activation, maximum, i === peak));
  });
  if (cutRight) strip.append(element("span", {class: "muted"}, "…"));
  return strip;
}

function stripToken(text, isSpecial, activation, maximum, isPeak) {
  const isActive = activation !== null && activation > 0;
  const share = isActive && maximum > 0 ? Math.min(1, activation / maximum) : 0;
  const shown = seen(isActive ? text.replace(/^ +$/, spaces => "␣".repeat(spaces.length)).replace(/\n/g, "⏎\n") : text);
  return element("span", {
    class: ["t", isSpecial && "special", isPeak && "peak"].filter(Boolean).join(" "),
    style: isActive ? `--share: ${share.toFixed(3)}` : null,
    title: `${visible(text)}  ${activation === null ? "not read here" : fixed(activation)}`,
  }, shown);
}
