// One image, large: its scores, its seed, the command that draws it again.

let zoomed = null; // { row, model, k }

function scoreTable(row, model, k) {
  const place = placeOf(row, model, k);
  const several = countIn(row) > 1;
  const body = scorers.map((scorer) => {
    const scores = scoresIn(scorer, row, model);
    const cells = [rounded(scoreOf(scorer, place))];
    if (several) cells.push(rounded(Math.max(...scores)), rounded(sum(scores) / scores.length));
    return make(
      'tr',
      {},
      make('th', { scope: 'row', text: display(scorer) }),
      ...cells.map((text) => make('td', { text })),
    );
  });
  const head = ['', 'this image', ...(several ? ['best', 'mean'] : [])];
  return scorers.length
    ? make(
        'table',
        { class: 'scores' },
        make('thead', {}, make('tr', {}, ...head.map((text) => make('th', { text })))),
        make('tbody', {}, ...body),
      )
    : null;
}

function factsOf(row, model, k) {
  const place = placeOf(row, model, k);
  const seed = images.seed?.[place];
  const lines = page.sets.length > 1 ? [['set', display(page.sets[rows.set[row]])]] : [];
  if (known(seed)) lines.push(['seed', seed < 0 ? 'not known' : String(seed)]);
  if (images.truth && known(images.truth[place])) {
    lines.push([
      'truth',
      images.truth[place]
        ? `as the prompt says (${page.truth})`
        : `not as the prompt says (${page.truth})`,
    ]);
  }
  if (images.flagged?.[place]) lines.push(['flagged', 'by the safety checker']);
  if (ofPairs && rows.label && known(rows.label[row]))
    lines.push(['label', `label_0 = ${rows.label[row]}`]);
  lines.push(['sha256', images.sha256[place].slice(0, 16)]);
  return make(
    'table',
    { class: 'told' },
    make(
      'tbody',
      {},
      ...lines.map(([name, text]) =>
        make('tr', {}, make('th', { scope: 'row', text: name }), make('td', { text })),
      ),
    ),
  );
}

function redrawn(row, model, k) {
  const command = commandFor(row, model, k);
  if (!command) return null;
  const area = make('textarea', {
    readonly: true,
    'aria-label': 'command that draws it again',
    rows: 3,
  });
  area.value = command;
  area.addEventListener('focus', () => area.select());
  const text = `draws it again, as image ${k + 1}`;
  return make(
    'div',
    {},
    make('small', { text }),
    make(
      'div',
      { class: 'redraw' },
      area,
      button('Copy', () => copy(command)),
    ),
  );
}

function film(row, model, k) {
  const strips = models.map(({ name }, m) => {
    const shots = Array.from({ length: countIn(row) }, (_, i) => {
      const label = describe(row, m, i);
      const settings = {
        type: 'button',
        class: 'image',
        title: label,
        onclick: () => openZoom(row, m, i),
      };
      if (m === model && i === k) settings['aria-current'] = 'true';
      return make('button', settings, picture(placeOf(row, m, i), 'small', label));
    });
    return make('div', {}, make('span', { text: name, title: name }), ...shots);
  });
  return make('div', { class: 'film' }, ...strips);
}

function zoomBar(row) {
  const address = () => `${location.href.split('#')[0]}${linkTo(row)}`;
  return make(
    'div',
    { class: 'bar' },
    make(
      'div',
      {},
      button('\u2190', () => stepZoom(0, -1), { 'aria-label': 'image before' }),
      button('\u2192', () => stepZoom(0, 1), { 'aria-label': 'next image' }),
    ),
    make(
      'div',
      {},
      button('Copy link', () => copy(address())),
      button('Close', () => byId('zoom').close(), { class: 'strong', id: 'zoom-close' }),
    ),
  );
}

function openZoom(row, model, k) {
  zoomed = { row, model, k };
  const place = placeOf(row, model, k);
  const alt = `${describe(row, model, k)}: ${rows.prompt[row]}`;
  const figure = make('figure', {}, picture(place, 'full', alt), film(row, model, k));
  const side = make(
    'div',
    { class: 'side' },
    make('p', { class: 'prompt', text: rows.prompt[row] }),
    make('h3', { text: describe(row, model, k) }),
    scoreTable(row, model, k),
    factsOf(row, model, k),
    redrawn(row, model, k),
  );
  const dialog = byId('zoom');
  dialog.replaceChildren(zoomBar(row), make('div', { class: 'zoomed' }, figure, side));
  if (!dialog.open) dialog.showModal();
  byId('zoom-close').focus();
}

// Another image of the same row: of another model, or the one before or after.
function stepZoom(byModel, byImage) {
  const { row, model, k } = zoomed;
  const count = countIn(row);
  const all = models.length * count;
  if (byModel) return openZoom(row, (model + byModel + models.length) % models.length, k);
  const next = (model * count + k + byImage + all) % all;
  return openZoom(row, Math.floor(next / count), next % count);
}

const ZOOM_KEYS = {
  ArrowLeft: () => stepZoom(0, -1),
  ArrowRight: () => stepZoom(0, 1),
  ArrowUp: () => stepZoom(-1, 0),
  ArrowDown: () => stepZoom(1, 0),
};

byId('zoom').addEventListener('keydown', (event) => {
  const act = ZOOM_KEYS[event.key];
  if (!act || event.target.tagName === 'TEXTAREA') return;
  event.preventDefault();
  act();
});
byId('zoom').addEventListener('close', () => {
  const position = zoomed ? positionOf(zoomed.row) : -1;
  if (position >= 0) goTo(position, zoomed.model, zoomed.k);
  zoomed = null;
});
