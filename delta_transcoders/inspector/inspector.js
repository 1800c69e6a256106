// One prompt's answers side by side; a slider, layers and dropped features for one more answer; token → features.
const info = JSON.parse(document.getElementById("info").textContent);
const at = id => document.getElementById(id);
const WHOLE = ["base_model", "raw", "no_delta", "full"];
const LIVE = "live";
const WAIT = 150; // milliseconds after the last change of a control
const state = {prompt: null, raw: null, drop: [], tokens: [], texts: "", selected: null};

// Asking: one request at a time for all answers, one for the live one; a newer request ends the one before.

const running = {};

async function ask(kind, request, onEvent) {
  running[kind]?.abort();
  const abort = running[kind] = new AbortController();
  const began = performance.now();
  try {
    const response = await fetch("answer", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(request), signal: abort.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error);
    let rest = "";
    for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
      const {value, done} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.event === "error") throw new Error(event.error);
        if (running[kind] === abort) onEvent(event);
      }
    }
    if (running[kind] === abort) say(`answered in ${((performance.now() - began) / 1000).toFixed(2)} s`);
  } catch (error) {
    if (error.name !== "AbortError") complain(error instanceof TypeError ? "the server does not answer: is it still running?" : error.message);
  }
}

function say(text) {
  at("status").textContent = text;
}

function complain(text) {
  at("problem").textContent = seen(text);
  at("problem").hidden = false;
  say("");
}

function askAll(prompt) {
  at("problem").hidden = true;
  const layers = chosenLayers();
  if (!layers.length) return complain("no layer is chosen: choose at least one");
  state.prompt = prompt;
  say("answering …");
  const names = WHOLE.filter(name => name in info.labels);
  names.forEach(name => showWriting(name, ""));
  ask("all", {prompt, conditions: names, layers}, event => {
    if (event.event === "texts") event.texts.forEach((text, i) => showWriting(names[i], text));
    if (event.event === "answers") {
      state.raw = event.answers.find(answer => answer.name === "raw").text;
      event.answers.forEach(answer => showAnswer(answer.name, answer));
      askLive();
    }
    if (event.event === "tokens") showTokens(event.tokens);
  });
}

function askLive() {
  const layers = chosenLayers();
  if (state.prompt === null || state.raw === null || !layers.length) return;
  at("problem").hidden = true;
  const drop = state.drop.filter(([layer]) => layers.includes(layer));
  const request = {prompt: state.prompt, conditions: [], alphas: [Number(at("alpha").value)], layers, drop};
  ask("live", request, event => {
    if (event.event === "asked") {
      part(LIVE, "h3").textContent = seen(event.answers[0].label);
      part(LIVE, ".text").classList.add("writing");
    }
    if (event.event === "texts") showWriting(LIVE, event.texts[0]);
    if (event.event === "answers") showAnswer(LIVE, event.answers[0]);
  });
}

function later(f) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(f, WAIT);
  };
}
const askLiveLater = later(askLive);
const askAllLater = later(() => state.prompt !== null && askAll(state.prompt));

// Answers

function card(name, label) {
  const text = element("p", {class: "text"});
  return element("article", {class: "answer", "data-name": name},
    element("h3", {}, seen(label)),
    element("div", {class: "opening", hidden: !info.opening, title: info.opening && `probability of writing ${visible(info.opening)} next`},
      element("span", {class: "p"}), element("div", {class: "bar"}, element("span"))),
    text, element("div", {class: "note"}));
}

const part = (name, selector) => document.querySelector(`[data-name=${name}] ${selector}`);

function showWriting(name, text) {
  part(name, ".text").replaceChildren(seen(text));
  part(name, ".text").classList.add("writing");
}

function showAnswer(name, answer) {
  const text = part(name, ".text"), notes = [];
  text.classList.remove("writing");
  text.replaceChildren(...compared(answer.text, state.raw), answer.is_cut ? "…" : "");
  if (answer.opening !== null) {
    part(name, ".p").textContent = `p(${info.opening_name}) ${percent(answer.opening)}`;
    part(name, ".bar span").style.setProperty("--share", answer.opening.toFixed(4));
  }
  if (answer.tool !== null) notes.push(element("span", {class: "tool"}, `the tool gives ${seen(answer.tool)}`));
  if (name !== "raw" && answer.text === state.raw) notes.push(element("span", {}, "as the finetuned model"));
  if (answer.is_cut) notes.push(element("span", {}, `cut at ${info.max_new_tokens} tokens`));
  if (answer.text === "") notes.push(element("span", {}, "nothing is written"));
  part(name, ".note").replaceChildren(...notes.flatMap((note, i) => i ? [" · ", note] : [note]));
}

// Pieces of a text; those that another text does not have in this order are marked.
function compared(text, other) {
  const pieces = of => of.match(/\p{L}+|\p{N}|\s+|[^\p{L}\p{N}\s]/gu) ?? [];
  const a = pieces(text), b = pieces(other);
  const kept = a.length * b.length > 1e6 ? a.map((piece, i) => piece === b[i]) : inCommon(a, b);
  const made = [];
  for (let i = 0; i < a.length;) {
    let end = i + 1;
    while (end < a.length && kept[end] === kept[i]) end++;
    const run = seen(a.slice(i, end).join(""));
    made.push(kept[i] ? run : element("mark", {}, run));
    i = end;
  }
  return made;
}

// Which pieces of a are in a longest common subsequence with b.
function inCommon(a, b) {
  const longest = Array.from({length: a.length + 1}, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const kept = a.map(() => false);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { kept[i++] = true; j++; }
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return kept;
}

// Layers and dropped features

const boxes = () => [...document.querySelectorAll("#layers input")];
const chosenLayers = () => boxes().filter(box => box.checked).map(box => Number(box.value));

function chooseLayers(on) {
  boxes().forEach(box => box.checked = on);
  layersChanged();
}

function layersChanged() {
  if (chosenLayers().length) askAllLater();
  else complain("no layer is chosen: choose at least one");
}

const nameOf = ([layer, number]) => `L${layer}F${number}`;
const isDropped = feature => state.drop.some(other => nameOf(other) === nameOf(feature));

function toggleDrop(feature) {
  state.drop = isDropped(feature) ? state.drop.filter(other => nameOf(other) !== nameOf(feature)) : [...state.drop, feature];
  showDropped();
  if (state.selected !== null) showFeatures(state.selected);
  askLiveLater();
}

function showDropped() {
  at("dropped").replaceChildren(...state.drop.map(feature => element("li", {},
    element("button", {type: "button", "aria-label": `put ${nameOf(feature)} back`, onclick: () => {
      toggleDrop(feature);
      (document.querySelector("#dropped button") ?? at("alpha")).focus();
    }}, `${nameOf(feature)} ×`))));
  at("none-dropped").hidden = state.drop.length > 0;
}

// Tokens and their features

function showTokens(tokens) {
  state.tokens = tokens;
  const largest = Math.max(...tokens.map(token => token.activity ?? 0));
  const made = tokens.map((token, i) => {
    const isRead = token.features !== null;
    const text = isRead ? token.text.replace(/^ +$/, spaces => "␣".repeat(spaces.length)).replace(/\n/g, "⏎\n") : token.text;
    return element("button", {
      type: "button", role: "option", class: isRead ? null : "unread", "aria-selected": "false", tabindex: i ? "-1" : "0",
      "aria-label": visible(token.text), title: isRead ? null : "no feature is read here",
      style: isRead && largest > 0 ? `--share: ${(token.activity / largest).toFixed(3)}` : null,
      onclick: () => select(i),
    }, seen(text));
  });
  const first = tokens.findIndex(token => token.is_answer);
  const arrow = element("span", {class: "muted", "aria-hidden": "true"}, "→ ");
  at("strip").replaceChildren(...made.flatMap((button, i) => i === first ? [element("br"), arrow, button] : [button]));
  const isSame = state.selected !== null && tokens.map(token => token.text).join("\n") === state.texts;
  state.texts = tokens.map(token => token.text).join("\n");
  select(isSame ? state.selected : first >= 0 ? first : tokens.length - 1, false);
}

const tokenButtons = () => [...document.querySelectorAll("#strip button")];

function select(i, focus = true) {
  const buttons = tokenButtons();
  if (!buttons[i]) return;
  buttons.forEach((button, j) => {
    button.setAttribute("aria-selected", String(i === j));
    button.tabIndex = i === j ? 0 : -1;
  });
  if (focus) buttons[i].focus();
  state.selected = i;
  showFeatures(i);
}

function showFeatures(i) {
  const {text, features} = state.tokens[i];
  const focused = document.activeElement?.dataset?.feature;
  const layers = Map.groupBy(features ?? [], ([layer]) => layer);
  const lists = [...layers].map(([layer, found]) => element("div", {class: "layer"}, element("h3", {}, `Layer ${layer}`),
    element("ul", {}, found.map(([, number, activation]) => {
      const feature = [layer, number], name = nameOf(feature);
      return element("li", {}, element("span", {}, name), element("span", {class: "value"}, fixed(activation)),
        element("button", {type: "button", "data-feature": name, "aria-pressed": String(isDropped(feature)),
          "aria-label": `${isDropped(feature) ? "put back" : "leave out"} ${name}`,
          onclick: () => toggleDrop(feature)}, isDropped(feature) ? "put back" : "leave out"));
    }))));
  const what = element("p", {}, "The strongest features on ", chip(text), lists.length ? ":" : ": none is active here, or none is read.");
  const where = info.pages && lists.length ? element("small", {}, "What a feature is: ", element("code", {}, `${seen(info.pages)}#${nameOf(features[0])}`)) : null;
  at("features").replaceChildren(...[what, element("div", {class: "by-layer"}, lists), where].filter(Boolean));
  if (focused) document.querySelector(`[data-feature=${focused}]`)?.focus();
}

at("strip").addEventListener("keydown", event => {
  const last = state.tokens.length - 1;
  const to = {ArrowRight: state.selected + 1, ArrowLeft: state.selected - 1, Home: 0, End: last}[event.key];
  if (to === undefined || hasModifier(event)) return;
  event.preventDefault();
  select(Math.min(last, Math.max(0, to)));
});

// The page

at("title").textContent = seen([info.title, `deltas ${info.deltas}`].filter(Boolean).join(" · "));
at("form").textContent = seen(info.form);
at("prompt").value = info.example;
const absent = Object.entries(info.absent).map(([name, why]) => `Without the ${name.replace("_", " ")}: ${why}`);
at("absent").textContent = seen(absent.join(" "));
at("absent").hidden = !absent.length;
at("answers").append(...WHOLE.filter(name => name in info.labels).map(name => card(name, info.labels[name])));
at("live").append(card(LIVE, info.labels.full));
document.querySelector(".boxes").append(...Object.keys(info.features).sort((a, b) => a - b).map(layer => element("label", {},
  element("input", {type: "checkbox", value: layer, checked: true, onchange: layersChanged}), ` ${layer}`)));
at("all").addEventListener("click", () => chooseLayers(true));
at("none").addEventListener("click", () => chooseLayers(false));
at("alpha").addEventListener("input", () => {
  at("alpha-shown").textContent = at("alpha").value.replace("-", "−");
  askLiveLater();
});
at("ask").addEventListener("submit", event => {
  event.preventDefault();
  askAll(at("prompt").value);
});
at("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    askAll(at("prompt").value);
  }
});
askAll(info.example);
