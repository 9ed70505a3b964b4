// The page as a whole: what is chosen, the theme, the keys, and where a link leads.

const THEMES = ['auto', 'light', 'dark'];
const system = window.matchMedia('(prefers-color-scheme: dark)');

function setTheme(name) {
  const dark = name === 'dark' || (name === 'auto' && system.matches);
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  byId('theme').textContent = { auto: 'Theme: auto', light: 'Theme: light', dark: 'Theme: dark' }[
    name
  ];
  byId('theme').dataset.name = name;
}

function nextTheme() {
  const name = THEMES[(THEMES.indexOf(byId('theme').dataset.name) + 1) % THEMES.length];
  kept.set('theme', name);
  setTheme(name);
}

// --- what is chosen

function fillControls() {
  fill(
    byId('contest'),
    contests.map((each, k) => [String(k), each.map(nameOf).join(' vs ')]),
    '0',
  );
  fill(
    byId('scorer'),
    scorers.map((name) => [name, display(name)]),
    scorers[0],
  );
  fill(byId('set'), [['', 'all'], ...page.sets.map((name) => [name, display(name)])], '');
  byId('pick-contest').hidden = contests.length < 2;
  byId('pick-scorer').hidden = !scorers.length || ofPairs;
  byId('pick-set').hidden = page.sets.length < 2;
  byId('find').placeholder = ofPairs ? 'words of a caption' : 'words of a prompt';
  fillSort();
}

function fillSort() {
  const orders = Object.entries(ordersOf(list.contest)).map(([name, [text]]) => [name, text]);
  fill(byId('sort'), orders, byId('sort').value);
}

function update() {
  list.scorer = byId('scorer').value;
  const [, number] = ordersOf(list.contest)[byId('sort').value];
  const some = filtered(byId('set').value, byId('find').value);
  list.shown = sorted(some, (row) => number(row, list.scorer));
  const what = ofPairs ? 'pairs' : 'prompts';
  byId('count').textContent =
    some.length === everyRow.length
      ? `${some.length} ${what}`
      : `${some.length} of ${everyRow.length} ${what}`;
  layOut();
}

function chooseContest(contest) {
  list.contest = contest;
  list.scale = marginScale(contest);
  byId('contest').value = String(contests.findIndex((each) => each.join() === contest.join()));
  fillSort();
  drawSummary(contest, chooseContest);
  update();
}

function chooseScorer(k) {
  if (!scorers[k] || ofPairs) return;
  byId('scorer').value = scorers[k];
  update();
}

// --- links

function follow() {
  const wanted = location.hash.match(/^#row=(.+)$/);
  if (!wanted) return;
  let key = '';
  try {
    key = decodeURIComponent(wanted[1]);
  } catch {
    return; // not one of our links
  }
  const row = rowOfKey.get(key);
  if (row === undefined) return;
  if (positionOf(row) < 0) {
    byId('find').value = '';
    byId('set').value = '';
    update();
  }
  goTo(positionOf(row));
}

// --- keys

const KEYS = [
  ['j', 'next row', () => moveRow(1)],
  ['k', 'row before', () => moveRow(-1)],
  ['ArrowRight', 'next image of the row', () => moveImage(1)],
  ['ArrowLeft', 'image before', () => moveImage(-1)],
  ['z', 'zoom; arrows go on there, Escape closes', () => zoomHere()],
  ['/', 'find', () => byId('find').focus()],
  ['s', 'next order', () => nextOrder()],
  [
    'b',
    'vote blind; there: arrows or a and l, down or space for alike, u to undo',
    () => openBlind(),
  ],
  ['t', 'light or dark', () => nextTheme()],
  ['?', 'this list', () => byId('keys').showModal()],
];

function zoomHere() {
  if (positionOf(list.at.row) < 0) moveRow(0);
  const { row, model, k } = list.at;
  if (row !== null) openZoom(row, model, k ?? bestShown(row, model));
}

function nextOrder() {
  const select = byId('sort');
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  update();
}

function fillKeys() {
  const words = { ArrowRight: '\u2192', ArrowLeft: '\u2190' };
  const lines = KEYS.map(([key, does]) => [words[key] ?? key, does]);
  if (scorers.length && !ofPairs)
    lines.splice(4, 0, ['1 \u2026 9', 'mark the best by this scorer']);
  byId('keys-table').replaceChildren(
    ...lines.map(([key, does]) =>
      make('tr', {}, make('td', {}, make('kbd', { text: key })), make('td', { text: does })),
    ),
  );
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]'))
    return;
  if (event.target.matches('input, select, textarea')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const found = KEYS.find(([key]) => key === event.key);
  if (found) found[2]();
  else if (/^[1-9]$/.test(event.key)) chooseScorer(Number(event.key) - 1);
  else return;
  event.preventDefault();
}

// --- together

function listen() {
  byId('controls').addEventListener('submit', (event) => event.preventDefault());
  byId('contest').addEventListener('change', () =>
    chooseContest(contests[Number(byId('contest').value)]),
  );
  for (const id of ['scorer', 'sort', 'set']) byId(id).addEventListener('change', update);
  byId('find').addEventListener('input', update);
  byId('theme').addEventListener('click', nextTheme);
  byId('blind-open').addEventListener('click', openBlind);
  byId('keys-open').addEventListener('click', () => byId('keys').showModal());
  system.addEventListener('change', () => setTheme(byId('theme').dataset.name));
  window.addEventListener('keydown', onKey);
  window.addEventListener('hashchange', follow);
  window.addEventListener('scroll', () => requestAnimationFrame(drawNear), { passive: true });
  window.addEventListener('beforeprint', printAll);
  window.addEventListener('afterprint', drawNear);
  let width = window.innerWidth;
  window.addEventListener('resize', () => {
    if (window.innerWidth === width) return drawNear();
    width = window.innerWidth;
    return layOut();
  });
}

setTheme(kept.get('theme') ?? 'auto');
fillControls();
fillKeys();
listen();
chooseContest(list.contest);
tellVotes();
follow();
