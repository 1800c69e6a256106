// The list, the address, the keys; blocks of features are loaded as they are looked at.
const page = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const nameOf = i => `L${page.features[i][0]}F${page.features[i][1]}`;
const LONGEST_LIST = 300, KEPT_BLOCKS = 4;
const blocks = new Map();  // by number, the last used last
const waiting = new Map();
let order = [], current = null, chosenSubset = null;

// Called by each block's script.
function register(number, found) {
  found.special = new Set(found.special);
  blocks.set(number, found);
  waiting.get(number)?.();
  waiting.delete(number);
}

function withBlock(number, then) {
  if (blocks.has(number)) return then(blocks.get(number));
  waiting.set(number, () => then(blocks.get(number)));
  document.body.append(element("script", {src: `features/${number}.js`, onload: event => event.target.remove(),
    onerror: () => problem(`features/${number}.js is not beside this page: keep both together.`)}));
}

function withFeature(i, then) {
  const number = Math.floor(i / page.perBlock);
  withBlock(number, found => {
    if (page.isSplit) {  // what was looked at long ago is read again when it is needed
      blocks.delete(number);
      blocks.set(number, found);
      if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
    }
    then({...found.features[i % page.perBlock], texts: found.texts, strings: found.tokens, special: found.special});
  });
}

// What the list can be sorted by: {group, title, key(i): sorted from the smallest, shown(i)}; null comes last, and so do
// features that never fire. A token more in each subset keeps what fires once from leading the ratios.
function sorts() {
  const density = Object.fromEntries(page.columns.filter(c => c.group === "density").map(c => [c.title, c.values]));
  const rarity = page.columns.find(c => c.group === "rarity").values;
  const effects = page.columns.filter(c => !["density", "rarity"].includes(c.group));
  const nTokens = Object.fromEntries(page.subsets.map(([subset, , n]) => [subset, n]));
  const ratio = i => {
    const [of, to] = [at("of").value, at("to").value];
    const [x, y] = [density[of][i], density[to][i]];
    return x == null || y == null || x + y === 0 ? null : (x + 1 / nTokens[of]) / (y + 1 / nTokens[to]);
  };
  const byActivity = [
    {title: "ratio of densities", key: i => ratio(i) === null ? null : -ratio(i), isRatio: true,
      shown: i => ratio(i) === null ? "–" : `${fixed(ratio(i), ratio(i) < 10 ? 2 : 0)}×`},
    {title: "rarest first", key: i => rarity[i] || null, shown: i => percent(rarity[i])},
    {title: "layer, number", key: i => i, shown: i => percent(rarity[i])},
  ];
  return [
    ...effects.map(({group, title, values, decimals}) => ({group, title, isEstimate: true,
      key: i => values[i] === null ? null : -Math.abs(values[i]), shown: i => signed(values[i], decimals)})),
    ...byActivity.filter(sort => !sort.isRatio || page.subsets.length > 1).map(sort => ({group: "activity", ...sort})),
  ];
}

const SORTS = sorts();

// By what removal does to cross-entropy on the first subset.
const firstSort = () => SORTS.find(sort => sort.title.startsWith("without it: cross-entropy")) ?? SORTS[0];

function fillControls() {
  for (const layer of new Set(page.features.map(feature => feature[0]))) at("layer").append(element("option", {value: layer}, `layer ${layer}`));
  for (const group of new Set(SORTS.map(sort => sort.group))) {
    at("sort").append(element("optgroup", {label: seen(group)}, SORTS.map((sort, i) =>
      sort.group === group ? element("option", {value: i}, seen(sort.title)) : null)));
  }
  for (const id of ["of", "to"]) at(id).append(...page.subsets.map(([subset]) => element("option", {value: subset}, seen(subset))));
  if (page.subsets.length > 1) at("to").selectedIndex = 1;
  at("sort").value = SORTS.indexOf(firstSort());
}

function isFound(i, query) {
  if (!query.trim()) return true;
  const word = query.toLowerCase().replace(/␣/g, " ").replace(/⏎/g, "\n");
  return nameOf(i).toLowerCase().startsWith(word.trim()) || page.features[i][2].some(token => token.toLowerCase().includes(word));
}

function drawList() {
  const sort = SORTS[at("sort").value], layer = at("layer").value;
  at("ratio").hidden = !sort.isRatio;
  const keys = page.features.map((_, i) => sort.key(i) ?? Infinity);
  order = page.features.map((_, i) => i).filter(i => (layer === "" || String(page.features[i][0]) === layer) && isFound(i, at("search").value));
  order.sort((a, b) => keys[a] === keys[b] ? a - b : keys[a] - keys[b]);
  const rest = order.length > LONGEST_LIST ? `; the first ${LONGEST_LIST} are listed` : "";
  at("count").textContent = `${count(order.length)} of ${count(page.features.length)} features${rest}${sort.isEstimate ? "; sorted by these estimates, so the first are too large" : ""}`;
  at("list").replaceChildren(...order.slice(0, LONGEST_LIST).map(i => element("li", {}, element("button",
    {type: "button", "data-feature": i, onclick: () => { location.hash = nameOf(i); }},
    element("b", {}, nameOf(i)), element("span", {class: "tokens"}, page.features[i][2].map(visible).join("  ")),
    element("span", {class: "value"}, sort.shown(i))))));
  markCurrent();
}

function markCurrent() {
  for (const button of at("list").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.feature) === current;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) scrollListTo(button);
  }
}

// Not `scrollIntoView`, which would scroll a narrow page away from the feature.
function scrollListTo(button) {
  const list = at("list"), bottom = button.offsetTop + button.offsetHeight;
  if (button.offsetTop < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight / 2;
}

function show(i) {
  current = i;
  document.title = `${nameOf(i)} · ${page.study}`;
  withFeature(i, feature => {
    if (i !== current) return;
    const density = ([subset]) => feature.activity[subset]?.density ?? -1;
    const densest = [...page.subsets].sort((a, b) => density(b) - density(a))[0]?.[0];
    const choose = subset => { chosenSubset = subset; draw(subset); };
    const draw = subset => at("main").replaceChildren(...drawFeature(feature, page, subset, choose, step));
    draw(chosenSubset ?? densest);
    markCurrent();
  });
}

function problem(text) {
  at("main").replaceChildren(element("h1", {}, "Nothing to show"), element("p", {class: "lead"}, text));
}

function route() {
  const wanted = location.hash.slice(1);
  if (!wanted) return order.length ? show(order[0]) : problem("There are no features.");
  const found = page.features.findIndex((_, i) => nameOf(i) === wanted);
  if (found >= 0) return show(found);
  current = null;
  document.title = `No such feature · ${page.study}`;
  problem(`There is no feature ${seen(wanted)} in this study; they are called like ${nameOf(0)} and ${nameOf(page.features.length - 1)}.`);
  markCurrent();
}

function step(by) {
  if (!order.length) return;
  const here = order.indexOf(current);
  location.hash = nameOf(order[here < 0 ? 0 : (here + by + order.length) % order.length]);
}

function onKey(event) {
  if (hasModifier(event)) return;
  if (isTyping(event)) {
    if (event.key !== "Escape") return;
    if (event.target === at("search")) { at("search").value = ""; drawList(); }
    event.target.blur();
  } else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "/") { event.preventDefault(); at("search").focus(); }
}

function start() {
  page.isSplit = blocks.size === 0;
  fillControls();
  drawList();
  for (const id of ["search", "layer", "sort", "of", "to"]) at(id).addEventListener("input", drawList);
  addEventListener("hashchange", () => { route(); at("main").scrollIntoView(); });
  addEventListener("keydown", onKey);
  route();
}
