// Blind votes: two images, no names, no scores. Sides and order follow from the voter's seed, so
// whoever has the file can tell what was shown where. Which images are shown follows from the page:
// all voters judge the same ones, and it can be seen how far they agree.

let ballot = null; // { voter, seed, pair, rows, votes, shownAt, kept }

// FNV-1a of a text, 32 bits.
function hashed(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  }
  return hash;
}

// One draw in [0, 1) for a text: mulberry32, seeded by the hash of the text.
function drawFor(text) {
  let state = (hashed(text) + 0x6d2b79f5) >>> 0;
  state = Math.imul(state ^ (state >>> 15), state | 1);
  state ^= state + Math.imul(state ^ (state >>> 7), state | 61);
  return ((state ^ (state >>> 14)) >>> 0) / 4294967296;
}

const drawn = (seed, what, row) => drawFor(`${seed}|${what}|${keyOf(row)}`);
const orderOf = (seed, some) => sorted(some, (row) => drawn(seed, 'order', row));

// What is shown of a row: the same image number of both models, and who is on the left.
function sidesOf(row, { seed, pair }) {
  const k = Math.floor(drawn(page.digest, 'image', row) * countIn(row));
  const sides = pair.map((model) => ({ model, k, place: placeOf(row, model, k) }));
  return drawn(seed, 'side', row) < 0.5 ? sides : sides.reverse();
}

const nameOfBallot = ({ voter, seed, pair }) =>
  `votes ${page.digest} ${pair.join('-')} ${seed} ${voter}`;

function sideInFile({ model, k, place }) {
  const sha256 = images.sha256[place];
  return ofPairs ? { image: model, sha256 } : { model: nameOf(model), image_index: k, sha256 };
}

function voteOf(row, choice, seconds) {
  const [left, right] = sidesOf(row, ballot).map(sideInFile);
  const vote = {
    prompt_set: page.sets[rows.set[row]],
    prompt_id: rows.id[row],
    prompt: rows.prompt[row],
    left,
    right,
    choice,
    seconds: Math.round(seconds * 10) / 10,
    at: `${new Date().toISOString().slice(0, 19)}Z`,
  };
  return ofPairs ? { pair_id: rows.id[row], ...vote } : vote;
}

function votesFile() {
  return {
    format: 'balanceddpo votes',
    version: 1,
    page: page.digest,
    voter: ballot.voter,
    seed: ballot.seed,
    models: ballot.pair.map(nameOf),
    votes: ballot.votes,
  };
}

const keyOfVote = (vote) => `${vote.prompt_set}/${vote.prompt_id}`;

function nextRow() {
  const done = new Set(ballot.votes.map(keyOfVote));
  return ballot.rows.find((row) => !done.has(keyOf(row)));
}

function keepVotes() {
  ballot.kept = kept.set(nameOfBallot(ballot), ballot.votes);
  const { voter, seed, pair } = ballot;
  kept.set(`voter ${page.digest}`, { voter, seed, pair });
}

function cast(choice) {
  const row = nextRow();
  if (row === undefined) return;
  ballot.votes.push(voteOf(row, choice, (performance.now() - ballot.shownAt) / 1000));
  keepVotes();
  showBallot();
}

function undo() {
  if (!ballot.votes.length) return;
  ballot.votes.pop();
  keepVotes();
  showBallot();
}

function saveVotes() {
  const text = `${JSON.stringify(votesFile(), null, 1)}\n`;
  const address = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  const name = ballot.voter.replace(/[^\w.-]+/g, '_') || 'anonymous';
  const link = make('a', { href: address, download: `votes-${name}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// --- the dialog

function ballotBar(done, all) {
  const close = () => byId('blind').close();
  const told =
    ballot.kept === false
      ? 'This browser keeps nothing: save before you close.'
      : `${done} of ${all} votes`;
  return make(
    'div',
    { class: 'bar' },
    make('span', { class: 'soft', role: 'status', text: told }),
    make(
      'div',
      {},
      button('Undo (u)', undo, { disabled: done === 0 }),
      button('Save votes', saveVotes, { disabled: done === 0, id: 'save-votes' }),
      button('Close', close),
    ),
  );
}

function sideButton(side, name, choice) {
  const image = picture(side.place, 'full', `${name} image`);
  return make(
    'button',
    {
      type: 'button',
      class: name,
      'aria-label': `the ${name} image is better`,
      onclick: () => cast(choice),
    },
    image,
  );
}

function showBallot() {
  const row = nextRow();
  const ids = new Set(ballot.rows.map(keyOf));
  const done = ballot.votes.filter((vote) => ids.has(keyOfVote(vote))).length;
  if (row === undefined) return showDone(done);
  const [left, right] = sidesOf(row, ballot);
  const bar = ballotBar(done, ballot.rows.length);
  bar.append(make('progress', { max: ballot.rows.length, value: done, 'aria-label': 'progress' }));
  const choices = make(
    'div',
    { class: 'choices' },
    button('\u2190 Left', () => cast('left'), { id: 'vote-left' }),
    button('\u2193 Alike', () => cast('alike'), { id: 'vote-alike' }),
    button('Right \u2192', () => cast('right'), { id: 'vote-right' }),
  );
  byId('blind').replaceChildren(
    make(
      'div',
      { class: 'ballot', 'data-row': row, tabindex: '-1' },
      bar,
      make('p', { class: 'prompt', text: rows.prompt[row] }),
      make(
        'div',
        { class: 'pair' },
        sideButton(left, 'left', 'left'),
        sideButton(right, 'right', 'right'),
      ),
      choices,
    ),
  );
  byId('blind').firstChild.focus(); // no button, so that space is a vote
  ballot.shownAt = performance.now();
  loadNext(row);
}

// The images of the next ballot are loaded while this one is looked at.
function loadNext(row) {
  const next = ballot.rows[ballot.rows.indexOf(row) + 1];
  if (next === undefined) return;
  for (const side of sidesOf(next, ballot)) new Image().src = sourceOf(side.place, 'full');
}

function showDone(done) {
  byId('blind').replaceChildren(
    make(
      'div',
      { class: 'done' },
      make('h2', { text: `All ${done} voted. Thank you!` }),
      make('p', { text: 'Save the votes as a file. The page keeps them too, in this browser.' }),
      ballotBar(done, ballot.rows.length),
    ),
  );
  byId('save-votes').focus();
}

const RULE = [
  'Two images at a time, without names and scores. Sides and order are shuffled by the seed; which',
  'images are shown is the same for everybody.',
].join(' ');

function fieldFor(id, value, settings) {
  const field = make('input', { id, required: true, ...settings });
  field.value = value;
  return field;
}

function selectFor(id, choices, value) {
  const field = make('select', { id });
  fill(field, choices, value);
  return field;
}

// The fields of the setup, filled with what the last voter of this page had.
function setupFields() {
  const last = kept.get(`voter ${page.digest}`) ?? {};
  const pair = last.pair ?? [...list.contest].reverse();
  const names = models.map(({ name }, k) => [String(k), name]);
  const several = [
    ['all', `all ${everyRow.length}`],
    ['shown', `the ${list.shown.length} that the list shows`],
  ];
  const random = crypto.getRandomValues(new Uint32Array(1))[0] % 1000000;
  const ofSeed = { type: 'number', min: 0, max: 4294967295, step: 1 };
  const ofVoter = { maxlength: 60, autocomplete: 'off', placeholder: 'anna' };
  return {
    voter: fieldFor('voter', last.voter ?? '', ofVoter),
    seed: fieldFor('seed', last.seed ?? random, ofSeed),
    first: selectFor('first', names, String(pair[0])),
    second: selectFor('second', names, String(pair[1])),
    which: selectFor('which', several, 'all'),
  };
}

function beginWith({ voter, seed, first, second, which }) {
  const pair = models.length > 2 ? [Number(first.value), Number(second.value)] : [0, 1];
  if (pair[0] === pair[1]) return toast('choose two models');
  const some = which.value === 'all' ? everyRow : list.shown;
  return begin(voter.value.trim() || 'anonymous', Number(seed.value), pair, some);
}

// Whose votes: a name, a seed, two models, and all prompts or those of the filter.
function showSetup() {
  const fields = setupFields();
  const named = (text, field) => make('label', {}, text, field);
  const two = (...children) => make('div', { class: 'two' }, ...children);
  const form = make(
    'form',
    { class: 'setup' },
    make('h2', { text: 'Vote blind' }),
    make('p', { class: 'soft', text: RULE }),
    named('Your name', fields.voter),
    two(named('Seed', fields.seed), named(ofPairs ? 'Pairs' : 'Prompts', fields.which)),
    models.length > 2 ? two(named('Compare', fields.first), named('with', fields.second)) : null,
    make(
      'div',
      { class: 'choices' },
      make('button', { class: 'strong', text: 'Begin', id: 'begin' }),
      button('Close', () => byId('blind').close()),
    ),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    beginWith(fields);
  });
  byId('blind').replaceChildren(form);
  fields.voter.focus();
}

function begin(voter, seed, pair, some) {
  pair = [...pair].sort((a, b) => a - b); // the same two models are the same ballot
  ballot = { voter, seed, pair, rows: orderOf(seed, some), votes: [], shownAt: 0 };
  ballot.votes = kept.get(nameOfBallot(ballot)) ?? [];
  keepVotes();
  showBallot();
}

function openBlind() {
  ballot = null;
  byId('blind').showModal();
  showSetup();
}

const BLIND_KEYS = {
  ArrowLeft: () => cast('left'),
  a: () => cast('left'),
  ArrowRight: () => cast('right'),
  l: () => cast('right'),
  ArrowDown: () => cast('alike'),
  ' ': () => cast('alike'),
  u: () => undo(),
};

byId('blind').addEventListener('keydown', (event) => {
  const act = BLIND_KEYS[event.key];
  if (!act || !ballot || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (nextRow() === undefined && event.key !== 'u') return;
  if (event.key === ' ' && event.target.tagName === 'BUTTON') return; // it presses the button
  event.preventDefault();
  act();
});
byId('blind').addEventListener('close', () => {
  byId('blind').replaceChildren();
  tellVotes();
});

// The button tells how many votes are kept here.
function tellVotes() {
  const last = kept.get(`voter ${page.digest}`);
  const votes = last && kept.get(nameOfBallot(last));
  byId('blind-open').textContent = votes?.length ? `Vote blind (${votes.length})` : 'Vote blind';
}
