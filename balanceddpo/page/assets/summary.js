// The top of the page: what was compared, what came out, what to be careful with.

const nameOf = (model) => models[model].name;
const isOf = (contest) => (row) =>
  row.model_a === nameOf(contest[0]) && row.model_b === nameOf(contest[1]);

// The pairs of models that have numbers, each as [a, b]; on a page of pairs its two images.
const contests = ofPairs
  ? [[0, 1]]
  : models.flatMap((_, first) =>
      models.slice(first + 1).map((__, later) => [first + 1 + later, first]),
    );

function factList() {
  const items = page.facts.map(([term, text]) =>
    make('div', {}, make('dt', { text: term }), make('dd', { text })),
  );
  return make('dl', { class: 'facts' }, ...items);
}

function cautionList() {
  const items = page.cautions.map(({ kind, text }) =>
    make(
      'li',
      { class: 'caution' },
      make('strong', { text: kind }),
      make('span', { text: unbroken(text) }),
    ),
  );
  return items.length
    ? make('ul', { class: 'cautions', 'aria-label': 'Cautions' }, ...items)
    : null;
}

// Where an interval lies: ahead of the middle, behind it, or over it.
const standing = (low, high, middle) =>
  low > middle ? 'ahead' : high < middle ? 'behind' : 'open';

// A value and its interval over a scale from -1 to 1; numbers are said in `label`.
function plot(value, low, high, kind, label) {
  const at = (x) => `${50 + 50 * Math.max(-1, Math.min(1, x))}%`;
  const middle = make('span', { class: 'middle' });
  const span = make('span', { class: 'span' });
  const dot = make('span', { class: 'dot' });
  span.style.left = at(low);
  span.style.right = `calc(100% - ${at(high)})`;
  dot.style.left = at(value);
  return make(
    'div',
    { class: `plot ${kind}`, role: 'img', 'aria-label': label },
    middle,
    span,
    dot,
  );
}

function rateCells(row) {
  if (!known(row?.win_rate))
    return [make('td', { class: 'plotted' }), make('td', { class: 'number', text: '\u2013' })];
  const { win_rate: rate, low, high } = row;
  const text = `${percent(rate)} % [${percent(low)}, ${percent(high)}]`;
  const kind = standing(low, high, 0.5);
  return [
    make(
      'td',
      { class: 'plotted' },
      plot(2 * rate - 1, 2 * low - 1, 2 * high - 1, kind, `win rate ${text}`),
    ),
    make('td', { class: 'number', 'data-what': 'win rate', text }),
  ];
}

function gainCells(gain, low, high, scale) {
  if (!known(gain))
    return [make('td', { class: 'plotted' }), make('td', { class: 'number', text: '\u2013' })];
  const text = `${signed(gain)} [${signed(low)}, ${signed(high)}]`;
  const kind = standing(low, high, 0);
  return [
    make(
      'td',
      { class: 'plotted' },
      plot(gain / scale, low / scale, high / scale, kind, `gain ${text}`),
    ),
    make('td', { class: 'number', 'data-what': 'gain', text }),
  ];
}

function forestRows(set, contest, scale) {
  const rates = page.rates.filter(isOf(contest)).filter((row) => row.prompt_set === set);
  const mean = page.gains.filter(isOf(contest)).find((row) => row.prompt_set === set);
  const found = rates.map((row) =>
    make(
      'tr',
      {},
      make('th', { class: 'name', scope: 'row', text: display(row.scorer) }),
      ...rateCells(row),
      ...gainCells(row.gain, row.gain_low, row.gain_high, scale),
      make('td', { class: 'p', text: pText(row.p_holm) }),
    ),
  );
  const group = make(
    'tr',
    { class: 'group' },
    make('th', { scope: 'rowgroup', colspan: 6, text: display(set) || 'prompts' }),
  );
  if (!mean) return [group, ...found];
  const last = make(
    'tr',
    { class: 'mean' },
    make('th', { class: 'name', scope: 'row', text: mean.scorer }),
    make('td', { class: 'empty' }),
    make('td', { class: 'empty' }),
    ...gainCells(mean.gain, mean.low, mean.high, scale),
    make('td', { class: 'p empty' }),
  );
  return [group, ...found, last];
}

function forest(contest) {
  const mine = page.rates.filter(isOf(contest));
  const ends = mine
    .flatMap((row) => [row.gain_low, row.gain_high])
    .filter(known)
    .map(Math.abs);
  const scale = Math.max(0.1, ...ends) * 1.05;
  const head = [
    '',
    'win rate, 0 to 100 %',
    '',
    `gain, \u00b1${scale.toFixed(2)} s.d.`,
    '',
    'p',
  ].map((text, k) =>
    make('th', { text, class: ['name', 'plotted', 'number rate', 'plotted', 'number', 'p'][k] }),
  );
  const sets = page.sets.filter((set) => mine.some((row) => row.prompt_set === set));
  return make(
    'table',
    { class: 'forest' },
    make('thead', {}, make('tr', {}, ...head)),
    make('tbody', {}, ...sets.flatMap((set) => forestRows(set, contest, scale))),
  );
}

function legend(contest) {
  const [a, b] = contest.map(nameOf);
  const item = (kind, text) => make('span', {}, plot(0, -0.8, 0.8, kind, ''), text);
  return make(
    'p',
    { class: 'legend' },
    item('ahead', `${a} is ahead of ${b}`),
    item('open', 'open'),
    item('behind', `${a} is behind`),
  );
}

function resultPanel(contest, choose) {
  const tabs = contests.map((each) => {
    const text = each.map(nameOf).join(' vs ');
    const selected = String(each.join() === contest.join());
    return button(text, () => choose(each), { role: 'tab', 'aria-selected': selected });
  });
  const row = tabs.length > 1 ? make('div', { class: 'tabs', role: 'tablist' }, ...tabs) : null;
  const title = make('h2', { text: contest.map(nameOf).join(' against ') });
  return make(
    'section',
    { class: 'panel' },
    row ?? title,
    forest(contest),
    legend(contest),
    make('p', { class: 'soft', text: page.measure }),
  );
}

function checkPanel() {
  const items = page.checks.map(({ told, sound }) =>
    make(
      'li',
      {},
      make('span', {
        class: sound ? 'yes' : 'no',
        role: 'img',
        'aria-label': sound ? 'good' : 'look',
      }),
      make('span', { text: unbroken(told) }),
    ),
  );
  return items.length
    ? make(
        'section',
        { class: 'panel' },
        make('h2', { text: 'Checks' }),
        make('ul', { class: 'checks' }, ...items),
      )
    : null;
}

// A rank with the interval that other prompts would have given: 1 [1-2].
const rankText = ({ rank, rank_low: low, rank_high: high }) => `${rank} [${low}\u2013${high}]`;

function rankRow(title, some) {
  const cells = models
    .map(({ name }) => some.find((row) => row.model === name))
    .map((row) =>
      make('td', {}, row ? make(row.rank === 1 ? 'b' : 'span', { text: rankText(row) }) : '\u2013'),
    );
  return make('tr', {}, make('th', { scope: 'row', text: title }), ...cells);
}

function rankPanel() {
  if (!page.ranks.length) return null;
  const of = (set, scorer) =>
    page.ranks.filter((row) => row.prompt_set === set && row.scorer === scorer);
  const body = [rankRow('all together', of('', ''))];
  for (const set of page.sets) {
    const mine = scorers.filter((scorer) => of(set, scorer).length);
    if (!mine.length) continue;
    body.push(
      make(
        'tr',
        {},
        make('th', { scope: 'rowgroup', colspan: 1 + models.length, text: display(set) }),
      ),
    );
    body.push(...mine.map((scorer) => rankRow(display(scorer), of(set, scorer))));
  }
  const head = ['', ...models.map(({ name }) => name)].map((text) => make('th', { text }));
  return make(
    'section',
    { class: 'panel' },
    make('h2', { text: 'Ranks, with 95 % intervals' }),
    make(
      'table',
      { class: 'ranks' },
      make('thead', {}, make('tr', {}, ...head)),
      make('tbody', {}, ...body),
    ),
  );
}

function drawSummary(contest, choose) {
  const right = [checkPanel(), rankPanel()].filter(Boolean);
  const left = page.rates.length ? [resultPanel(contest, choose)] : [];
  const panels =
    left.length && right.length
      ? make('div', { class: 'panels' }, make('div', {}, ...left), make('div', {}, ...right))
      : make('div', {}, ...left, ...right);
  byId('summary').replaceChildren(...[factList(), cautionList(), panels].filter(Boolean));
}
