// Draws one feature as `encoding.block` describes it; needs dom.js and token_strip.js.
const KINDS = {
  top: "Strongest",
  fifth_4: "Drawn at random: 60–80 % of its maximum",
  fifth_3: "Drawn at random: 40–60 % of its maximum",
  fifth_2: "Drawn at random: 20–40 % of its maximum",
  fifth_1: "Drawn at random: 0–20 % of its maximum",
  silent: "Drawn at random: silent on the whole text",
};

const card = (heading, ...content) => element("section", {class: "card"}, element("h2", {}, heading), content);
const note = (...text) => element("p", {class: "muted note"}, ...text);
const heldOut = isHeldOut => isHeldOut ? element("span", {class: "chip"}, "held out") : null;
const subsetName = subset => seen(subset.replace(/ \(held out\)$/, ""));
const link = name => element("a", {href: `#${name}`}, name);

function table(head, rows) {
  const cells = (tag, row) => element("tr", {}, row.map((cell, i) =>
    element(tag, tag === "th" ? {scope: "col"} : {}, cell)));
  return element("div", {class: "wide"}, element("table", {}, element("thead", {}, cells("th", head)),
    element("tbody", {}, rows.map(row => cells("td", row)))));
}

const ABLATIONS = {
  dropped: ["What removing it does", "Base and delta in place of the finetuned MLPs, with this one feature taken out: changes, with 95 % intervals."],
  kept: ["What it does alone", "Base and delta in place of the finetuned MLPs, at its layer with this one feature instead of none: changes, with 95 % intervals."],
};

// What ablating it changes: for each measure a row for each subset, all on one axis.
function effectsCard(feature, page, ablation) {
  const [heading, how] = ABLATIONS[ablation] ?? [seen(ablation), ""];
  const isKnown = row => row !== undefined && row[0] !== null;
  const measures = feature.effects.filter(found => found.ablation === ablation && Object.values(found.rows).some(isKnown));
  if (!measures.length) return card(heading, note("not measured"));
  const isMeasured = subset => measures.some(found => isKnown(found.rows[subset]));
  const others = page.effectSubsets.filter(subset => !isMeasured(subset)).map(seen);
  return card(heading,
    element("div", {class: "effects"}, measures.map(found => effectRows(found, page.effectSubsets.filter(isMeasured)))),
    note(`${how} ~0: the interval holds 0. Of effects that are none, one interval in twenty leaves out 0.`,
      others.length ? ` Not measured on ${others.join(", ")}.` : ""));
}

function effectRows({title, unit, decimals, rows}, subsets) {
  const ends = Object.values(rows).flatMap(([value, low, high]) => [value, low, high]);
  const limit = Math.max(...ends.map(value => Math.abs(value ?? 0)));
  const heading = element("h3", {}, seen(title), unit ? `, ${unit} ` : " ",
    limit > 0 ? element("span", {class: "scale"}, `axis ±${fixed(limit, decimals)}`) : null);
  return [heading, subsets.map(subset => {
    const [value, low, high, n] = rows[subset] ?? [null];
    if (value === null) {
      return element("div", {class: "row"}, element("span", {}, seen(subset)), element("div", {class: "axis"}),
        element("span", {class: "muted"}, "not measured"));
    }
    const holdsZero = low <= 0 && high >= 0, digits = decimals ?? decimalsOf(value);
    const text = `${signed(value, digits)} [${signed(low, digits)}, ${signed(high, digits)}]${holdsZero ? " ~0" : ""}`;
    return element("div", {class: "row"}, element("span", {}, seen(subset)), axis(value, low, high, limit || 1, holdsZero),
      element("span", {title: `${count(n)} prompts`}, text));
  })];
}

const otherAblations = feature => [...new Set(feature.effects.map(found => found.ablation))].filter(name => name !== "dropped");

function axis(value, low, high, limit, holdsZero) {
  const at = x => 50 + 48 * x / limit;
  return element("div", {class: `axis ${holdsZero ? "none" : value > 0 ? "more" : "less"}`, "aria-hidden": "true"},
    element("i", {class: "zero"}),
    element("i", {class: "range", style: `left: ${at(low)}%; width: ${at(high) - at(low)}%`}),
    element("i", {class: "dot", style: `left: ${at(value)}%`}));
}

// Where it fires: each subset's histogram and densities, those that were trained on first.
function activityCard(feature, page) {
  const subsets = [...page.subsets].sort((a, b) => a[1] - b[1]);
  const counts = subsets.flatMap(([subset]) => feature.activity[subset]?.histogram ?? []);
  const highest = Math.log1p(Math.max(1, ...counts));
  const rows = subsets.map(([subset, isHeldOut]) => {
    const activity = feature.activity[subset], name = element("span", {}, subsetName(subset), " ", heldOut(isHeldOut));
    if (!activity || activity.density === null) return [name, element("span", {class: "muted"}, "no data"), "", "", ""];
    return [name, histogram(activity.histogram, highest, feature.maximum, subset), percent(activity.density),
      percent(activity.example_density), fixed(activity.mean)];
  });
  return card("Where it fires", table(["subset", `activation, 0 to ${fixed(feature.maximum)}`, "of tokens", "of texts", "mean"], rows),
    note("Histograms: tokens by activation where it fires, on one log scale. “Held out”: texts that the delta was not trained on."));
}

function histogram(counts, highest, maximum, subset) {
  const bar = number => element("i", {style: `height: ${number ? Math.max(4, 100 * Math.log1p(number) / highest) : 0}%`, title: `${count(number)} tokens`});
  return element("div", {class: "histogram", role: "img",
    "aria-label": `Histogram of activations on ${seen(subset)}, from 0 to ${fixed(maximum)}`}, counts.map(bar));
}

function tokensCard(feature) {
  const rows = feature.tokens.map(([token, share, fires, mean]) => [chip(token), percent(share), percent(fires), fixed(mean)]);
  return card("Tokens it fires on", rows.length
    ? table(["token", "of its activity", "fires on", "mean"], rows) : note("none"),
    note("On all subsets together, trained on and held out. “Fires on”: share of the token's occurrences; “mean”: over those."));
}

function writesCard(feature, page) {
  const isLast = feature.layer === page.nLayers - 1;
  const chips = (title, tokens) => [element("h3", {}, title), element("p", {class: "chips"},
    tokens.map(([token, logit]) => [chip(token, signed(logit)), " "]))];
  return card(isLast ? "What it writes" : "What it writes: a hint",
    chips("promotes", feature.promotes), chips("suppresses", feature.suppresses),
    note("Its decoder row through the final norm's scale and the unembedding. ", isLast
      ? "This is the last layer, so it is the direct effect." : "Later layers are left out: a hint, not an effect."));
}

function attributionsCard(feature, page) {
  const names = Object.keys(feature.attributions);
  const subsets = [...new Set(names.flatMap(name => Object.keys(feature.attributions[name])))];
  const rows = subsets.map(subset => [seen(subset), ...names.map(name => signed(feature.attributions[name][subset] ?? null))]);
  return card("Attributions", names.length
    ? [table(["subset", ...names.map(name => page.attributionTitles[name] ?? seen(name))], rows),
      note("Integrated gradients over gates, from no feature at all to all of them, on half A of the wordings; nats an example.")]
    : note("not measured"));
}

// Contexts by subset; `choose(subset)` draws another.
function contextsCard(feature, page, chosen, choose) {
  const tabs = element("div", {class: "tabs", role: "group", "aria-label": "Subset"}, page.subsets.map(([subset, isHeldOut]) =>
    element("button", {type: "button", "aria-pressed": String(subset === chosen), onclick: () => choose(subset)},
      subsetName(subset), isHeldOut ? " · held out" : "")));
  const shown = feature.contexts.filter(([text]) => feature.texts[text][0] === chosen);
  const groups = Object.entries(KINDS).map(([kind, heading]) => {
    const rows = shown.filter(context => context[1] === kind);
    return rows.length ? [element("h3", {}, heading), rows.map(context => contextRow(feature, context))] : [];
  });
  return card("Contexts", tabs, note(`Colour: activation, from 0 to its maximum anywhere, ${fixed(feature.maximum)}; `
    + "underlined: the token that is meant; → is where the model begins to write; boxed: special tokens. Texts that are the same up to that token but for digits are shown once."),
    groups, shown.length ? null : note("no data on this subset"));
}

function contextRow(feature, [text, kind, peak, nAlike, sparse]) {
  const [, example, targetFrom, cutLeft, cutRight, ids, unread] = feature.texts[text];
  const activations = Array(ids.length).fill(0);
  for (const i of unread) activations[i] = null;
  for (let i = 0; i < sparse.length; i += 2) activations[sparse[i]] = sparse[i + 1];
  const isSilent = kind === "silent";
  return element("div", {class: "ctx", title: `text ${seen(example)}`},
    element("span", {class: "peak-value"}, isSilent ? "0" : fixed(activations[peak])),
    tokenStrip({tokens: ids.map(id => feature.strings[id]), special: ids.map(id => feature.special.has(id)), activations,
      maximum: feature.maximum, peak: isSilent ? null : peak, targetFrom, cutLeft, cutRight}),
    element("small", {}, nAlike ? `+ ${count(nAlike)} alike` : ""));
}

function relativesCard(feature) {
  return card("Fires together with", element("p", {class: "links"}, feature.together.length
    ? feature.together.map(([name, overlap]) => [link(name), ` ${fixed(overlap, 2)}   `]) : "none"),
    note("Jaccard index of the tokens on which both fire."),
    element("h2", {}, "In deltas of other seeds"), feature.matches.length
      ? table(["delta", "nearest", "cosine"], feature.matches.map(([folder, name, cosine]) => [seen(folder), name, fixed(cosine, 2)]))
      : note("not compared"),
    note("Cosine of the decoder rows, same layer."));
}

const commandCard = feature => card("Ask the model without it", element("pre", {tabindex: "0"}, feature.command),
  note("Shows a prompt's answers by all conditions, with this feature taken out of the delta; `--json` for numbers."));

// All of main; `step(by)` shows the next feature of the list.
function drawFeature(feature, page, chosen, choose, step) {
  const ofLayer = page.features.filter(([layer]) => layer === feature.layer).length;
  return [
    element("p", {class: "muted where"}, `layer ${feature.layer} · feature ${feature.number} (0 to ${ofLayer - 1}) `,
      element("button", {type: "button", "aria-label": "Previous feature of the list", onclick: () => step(-1)}, "‹"), " ",
      element("button", {type: "button", "aria-label": "Next feature of the list", onclick: () => step(1)}, "›")),
    element("h1", {}, feature.name), element("p", {class: "lead"}, feature.words),
    element("div", {class: "cards"}, effectsCard(feature, page, "dropped"), writesCard(feature, page),
      activityCard(feature, page), tokensCard(feature)),
    page.hasContexts ? contextsCard(feature, page, chosen, choose)
      : card("Contexts", note("left out: this page was made with --no-contexts")),
    element("div", {class: "cards"}, otherAblations(feature).map(ablation => effectsCard(feature, page, ablation)),
      attributionsCard(feature, page), relativesCard(feature), commandCard(feature)),
  ];
}
