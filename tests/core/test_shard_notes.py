"""Notes of shards: none that is not what was written is believed."""

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.shard_notes import finish_shards, note_path, read_note, write_note
from balanceddpo.core.stages import open_stage, verify_manifest


def test_no_flipped_bit_of_a_note_is_read(tmp_path):
    shard = tmp_path / 'shard-0.bin'
    shard.write_bytes(b'latents')
    write_note(shard, ['fox', 'owl'], 'monday', pairs=[['id 1', 'a fox'], ['id 2', 'an owl']])
    good, data = read_note(shard), note_path(shard).read_bytes()
    assert good['pairs'][1] == ['id 2', 'an owl']
    for place in range(len(data)):
        for bit in (1, 32):
            hurt = bytearray(data)
            hurt[place] ^= bit
            note_path(shard).write_bytes(hurt)
            assert read_note(shard) in ({}, good), (place, bit)


def test_a_shard_that_is_not_what_its_note_says_is_in_no_manifest(tmp_path):
    stage = open_stage('encode', {'size': 1}, folder=tmp_path / 'encoded')
    shards = [stage.folder / f'shard-{k}.bin' for k in (0, 1)]
    for shard in shards:
        shard.write_bytes(b'latents')
        write_note(shard, [shard.name], '')
    shards[1].write_bytes(b'latentz')
    with pytest.raises(InputError, match='shard-1.bin is damaged: run this again'):
        finish_shards(stage, shards, pairs=2)
    assert not (stage.folder / 'manifest.json').exists()
    shards[1].write_bytes(b'latents')
    finish_shards(stage, shards, pairs=2)
    assert verify_manifest(stage.folder)['pairs'] == 2
