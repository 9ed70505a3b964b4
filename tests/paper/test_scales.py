"""Scales: how large a study is."""

from balanceddpo.paper.scales import SMOKE, few_prompts, published_scale


def test_a_scale_has_no_more_prompts_than_before():
    smoke = few_prompts(SMOKE, n_prompts=50, images=3)
    assert (smoke.n_prompts, smoke.images_per_prompt) == (SMOKE.n_prompts, 3)
    assert smoke.prompts == SMOKE.prompts
    assert few_prompts(SMOKE, n_prompts=4, images=1).n_prompts == 4


def test_a_scale_without_a_limit_gets_one_and_the_first_set_alone():
    files = {'pickapic': 'a.txt', 'hpd': 'b.txt'}
    whole = published_scale('sd15', 'model', 'pairs', files)
    few = few_prompts(whole, n_prompts=50, images=2, sets=1)
    assert whole.n_prompts is None
    assert (few.n_prompts, few.prompts) == (50, (('pickapic', 'a.txt'),))
