"The tokens of the icon world's captions."

from balanceddpo.icon_world.words import make_tokenizer, world_words


def test_words_are_one_token_and_nothing_is_unknown():
    tokenizer = make_tokenizer()
    ids = tokenizer('a zebra, 東京 <b>').input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == max(tokenizer.get_vocab().values())
    assert all(len(tokenizer(word).input_ids) == 3 for word in world_words())
