// The rows: one a prompt, one column a model. All rows are as high as the first, so the place of
// each is known; only those near the window are in the page, however many there are.

const AHEAD = 3; // rows beyond the window, above and below
const PRINTED = 300; // rows that go on paper

const list = {
  shown: [], // rows, in their order
  contest: contests[0],
  scorer: scorers[0] ?? '',
  at: { row: null, model: 0, k: null }, // where the keys are
  scale: 1, // a margin as long as half of its bar
  height: 0, // of a row and the gap below it, in pixels
  mosaic: false, // the other images stand beside the large one, and not in a strip below
  there: new Map(), // position -> element
};

const describe = (row, model, k) =>
  ofPairs ? nameOf(model) : `${nameOf(model)}, image ${k + 1} of ${countIn(row)}`;

// The image that is shown large: the best by the chosen scorer, or the first.
const bestShown = (row, model) => (list.scorer ? bestIn(list.scorer, row, model) : 0);

function isFalse(place) {
  return images.truth?.[place] === 0;
}

function imageButton(row, model, k, size) {
  const place = placeOf(row, model, k);
  const best = !ofPairs && list.scorer && countIn(row) > 1 && k === bestShown(row, model);
  const classes = ['image', size === 'big' && 'big', best && 'best', isFalse(place) && 'false'];
  const said = [
    describe(row, model, k),
    best && `best by ${display(list.scorer)}`,
    isFalse(place) && 'not true to the prompt',
  ];
  const label = said.filter(Boolean).join(', ');
  return make(
    'button',
    {
      type: 'button',
      class: classes.filter(Boolean).join(' '),
      title: label,
      'data-model': model,
      'data-k': k,
      onclick: () => openZoom(row, model, k),
    },
    picture(place, 'small', label),
  );
}

// How many scorers prefer an image of a pair.
function votesFor(row, model) {
  const other = 1 - model;
  const mine = marginsOf(row, [model, other]).filter((margin) => margin > 0).length;
  return `${mine} of ${scorers.length} scorers prefer it`;
}

function noteOf(row, model, k) {
  const place = placeOf(row, model, k);
  const truth = truthIn(row, model);
  const parts = [];
  if (ofPairs && scorers.length) parts.push(votesFor(row, model));
  else if (list.scorer)
    parts.push(`${display(list.scorer)} ${rounded(scoreOf(list.scorer, place))}`);
  if (truth !== null) parts.push(`${Math.round(truth * countIn(row))} of ${countIn(row)} true`);
  if (images.flagged?.[place]) parts.push('flagged');
  return parts.join(' \u00b7 ');
}

// Who was preferred, on a page of pairs.
function labelOf(row, model) {
  const label = rows.label?.[row] ?? null;
  if (label === null) return '';
  if (label === 0.5) return 'tie';
  return (model === 0) === label > 0.5 ? 'preferred' : '';
}

function cell(row, model) {
  const best = bestShown(row, model);
  const count = countIn(row);
  const won = ofPairs ? labelOf(row, model) : '';
  const source = rows.sources?.[row]?.[model];
  const title = [nameOf(model), source, won].filter(Boolean).join(' \u00b7 ');
  const big = imageButton(row, model, best, 'big');
  if (won === 'preferred') big.classList.add('won', 'best');
  const every = Array.from({ length: count }, (_, k) => k);
  const others = list.mosaic ? every.filter((k) => k !== best) : every;
  const strip =
    page.per > 1
      ? make(
          'div',
          { class: list.mosaic ? 'others' : 'strip' },
          ...others.map((k) => imageButton(row, model, k, 'small')),
        )
      : null;
  return make(
    'section',
    { class: 'cell' },
    make('h4', { text: title, title }),
    make('div', { class: list.mosaic ? 'mosaic' : 'stack' }, big, strip),
    make('p', { class: 'note', text: noteOf(row, model, best) }),
  );
}

// A margin that few are beyond, so that the bars of all rows can be compared.
function marginScale(contest) {
  const all = everyRow
    .flatMap((row) => marginsOf(row, contest))
    .filter(known)
    .map(Math.abs);
  all.sort((a, b) => a - b);
  return Math.max(0.1, Math.ceil(10 * (all[Math.floor(0.95 * all.length)] ?? 1)) / 10);
}

function leanCell(margin) {
  if (margin === null) return make('td');
  const kind = margin > 0 ? 'ahead' : margin < 0 ? 'behind' : 'open';
  const bar = make('i');
  const share = `${50 * Math.min(1, Math.abs(margin) / list.scale)}%`;
  bar.style[margin < 0 ? 'right' : 'left'] = '50%';
  bar.style.width = share;
  return make('td', {}, make('div', { class: `lean ${kind}` }, bar));
}

// The margin as it is drawn: to the right for the image on the right.
function shownMargin(scorer, row) {
  const margin = marginOf(scorer, row, list.contest);
  return ofPairs && margin !== null ? -margin : margin;
}

function marginTable(row) {
  const [a, b] = list.contest.map(nameOf);
  const body = scorers.map((scorer) => {
    const margin = shownMargin(scorer, row);
    const number = ofPairs ? '' : ` ${known(margin) ? signed(margin) : '\u2013'}`;
    const text = `${margin > 0 ? '\u25b8' : margin < 0 ? '\u25c2' : ''}${number}`;
    return make(
      'tr',
      {},
      make('th', {
        scope: 'row',
        text: display(scorer),
        title: display(scorer),
        class: !ofPairs && scorer === list.scorer && 'chosen',
      }),
      leanCell(margin),
      make('td', { class: 'value', text }),
    );
  });
  const unit = ofPairs ? 'votes' : `\u00b1${list.scale.toFixed(1)} s.d.`;
  const [left, right] = ofPairs ? [a, b] : [b, a];
  const caption = `${left} \u25c2  \u25b8 ${right}, ${unit}`;
  return make(
    'aside',
    { class: 'margins' },
    make(
      'table',
      {},
      make('caption', { text: caption, title: caption }),
      make('tbody', {}, ...body),
    ),
  );
}

const linkTo = (row) => `#row=${encodeURIComponent(keyOf(row))}`;

function rowElement(row) {
  const link = make('a', {
    class: 'link',
    href: linkTo(row),
    text: '#',
    title: 'link to this row',
    'aria-label': 'link to this row',
  });
  const head = make(
    'header',
    {},
    make('h3', { text: rows.prompt[row], title: rows.prompt[row] }),
    page.sets.length > 1
      ? make('span', { class: 'tag', text: display(page.sets[rows.set[row]]) })
      : null,
    link,
  );
  const columns = make(
    'div',
    { class: 'columns' },
    ...models.map((_, model) => cell(row, model)),
    scorers.length ? marginTable(row) : null,
  );
  const here = row === list.at.row;
  return make(
    'article',
    {
      class: here ? 'row here' : 'row',
      tabindex: '-1',
      'data-row': row,
      'aria-label': rows.prompt[row],
    },
    head,
    columns,
  );
}

// The large image and two lines of the others beside it, if the column is wide enough for that;
// otherwise the others are a strip below.
function imageSizes(column) {
  const beside = Math.ceil((page.per - 1) / 2);
  const big = Math.min(260, Math.floor((column - 2 * beside) / (1 + beside / 2)));
  if (page.per > 1 && big >= 120) return { big, small: Math.floor((big - 4) / 2), mosaic: true };
  const small = Math.max(26, Math.min(48, Math.floor((column - 4 * page.per) / page.per)));
  return {
    big: Math.max(72, Math.min(ofPairs ? 340 : 260, Math.floor(column))),
    small,
    mosaic: false,
  };
}

// Sizes that follow from the width of the window.
function setSizes() {
  const style = document.documentElement.style;
  const wide = byId('list').clientWidth;
  const narrow = window.innerWidth <= 900;
  const beside = narrow || !scorers.length ? 0 : 232;
  const column = (wide - beside - 34) / models.length - (narrow ? 12 : 28);
  const { big, small, mosaic } = imageSizes(column);
  list.mosaic = mosaic;
  style.setProperty('--models', models.length);
  style.setProperty('--big', `${big}px`);
  style.setProperty('--small', `${small}px`);
  const longest = Math.max(0, ...rows.prompt.map((text) => text.length));
  style.setProperty('--head', longest * 8 > wide - 220 ? '46px' : '24px');
  document.body.classList.toggle('bare', !scorers.length);
}

function clearRows() {
  for (const element of list.there.values()) element.remove();
  list.there.clear();
}

// Measure a row, and make the list as high as all of them.
function layOut() {
  setSizes();
  clearRows();
  byId('nothing').hidden = list.shown.length > 0;
  if (!list.shown.length) {
    byId('list').style.height = '0px';
    return;
  }
  const first = rowElement(list.shown[0]);
  byId('list').append(first);
  list.height = Math.ceil(first.getBoundingClientRect().height) + 12;
  first.remove();
  byId('list').style.height = `${list.height * list.shown.length}px`;
  drawNear();
}

const topOfList = () => byId('list').getBoundingClientRect().top + window.scrollY;

function drawNear() {
  if (!list.shown.length) return;
  const from = (window.scrollY - topOfList()) / list.height;
  const to = from + window.innerHeight / list.height;
  const end = list.shown.length - 1;
  // the first ones even where a long summary keeps them far below the window
  drawBetween(
    Math.min(end, Math.max(0, Math.floor(from) - AHEAD)),
    Math.min(end, Math.max(AHEAD, Math.ceil(to) + AHEAD)),
  );
}

function drawBetween(first, last) {
  for (const [position, element] of list.there) {
    if (position < first || position > last) {
      element.remove();
      list.there.delete(position);
    }
  }
  for (let position = first; position <= last; position += 1) {
    if (list.there.has(position)) continue;
    const element = rowElement(list.shown[position]);
    element.style.top = `${position * list.height}px`;
    element.setAttribute('aria-posinset', position + 1);
    element.setAttribute('aria-setsize', list.shown.length);
    const after = [...list.there.entries()]
      .filter(([other]) => other > position)
      .sort((a, b) => a[0] - b[0])[0];
    byId('list').insertBefore(element, after ? after[1] : null);
    list.there.set(position, element);
  }
}

// Mark the row and the image where the keys are, and bring the row into the window.
function goTo(position, model = 0, k = null) {
  const row = list.shown[position];
  if (row === undefined) return;
  list.at = { row, model, k };
  const top = topOfList() + position * list.height;
  const bar = byId('controls').offsetHeight;
  const seen =
    top >= window.scrollY + bar && top + list.height <= window.scrollY + window.innerHeight;
  if (!seen) window.scrollTo({ top: top - bar - 12 });
  drawNear();
  for (const element of list.there.values()) {
    element.classList.toggle('here', Number(element.dataset.row) === row);
  }
  const element = list.there.get(position);
  const image =
    k === null ? null : element?.querySelector(`.image[data-model="${model}"][data-k="${k}"]`);
  (image ?? element)?.focus({ preventScroll: true });
}

const positionOf = (row) => list.shown.indexOf(row);

function moveRow(by) {
  const now = positionOf(list.at.row);
  const start = Math.round((window.scrollY - topOfList()) / list.height);
  const next = now < 0 ? Math.max(0, start) : now + by;
  goTo(Math.max(0, Math.min(list.shown.length - 1, next)));
}

// The image before or after, through the models of the row.
function moveImage(by) {
  if (positionOf(list.at.row) < 0) moveRow(0);
  const { row, model, k } = list.at;
  const count = countIn(row);
  const now = k === null ? (by > 0 ? -1 : 0) : model * count + k;
  const next = (now + by + models.length * count) % (models.length * count);
  goTo(positionOf(row), Math.floor(next / count), next % count);
}

function printAll() {
  drawBetween(0, Math.min(PRINTED, list.shown.length) - 1);
}
