import pytest

from trainer.engine.pages import Pages, next_key, root_key


def keys_of(tokens, version=0, size=4):
    keys, before = [], root_key(version)
    for end in range(size, len(tokens) + 1, size):
        before = next_key(before, tokens[end - size : end])
        keys.append(before)
    return keys


def test_a_key_stands_for_the_version_and_all_tokens_up_to_the_page():
    keys = keys_of([1, 2, 3, 4, 5, 6, 7, 8])
    assert keys == keys_of([1, 2, 3, 4, 5, 6, 7, 8])
    others = [
        keys_of([1, 2, 3, 4, 5, 6, 7, 9]),
        keys_of([9, 2, 3, 4, 5, 6, 7, 8]),
        keys_of([1, 2, 3, 4, 5, 6, 7, 8], 1),
    ]
    assert others[0][0] == keys[0]
    assert len({keys[1], *(other[1] for other in others)}) == 4
    assert root_key(1) != root_key("1")


def test_published_pages_are_found_shared_and_kept_until_room_is_needed():
    pages, keys = Pages(4), keys_of(range(8))
    first = pages.acquire([], 3)
    assert first == [0, 1, 2]
    pages.publish(0, keys[0])
    pages.publish(1, keys[1])
    assert pages.find([*keys, b"unknown"]) == [0, 1]
    assert pages.find([keys_of(range(1, 9))[0], keys[1]]) == []  # a run of keys ends at the first that is unknown
    assert pages.acquire([0, 1], 1) == [3]
    assert pages.available == 0
    assert pages.acquire([0], 1) is None
    pages.release(first)
    assert (pages.available, pages.idle) == (1, 0)  # page 2; the other request still holds 0 and 1
    pages.release([0, 1, 3])
    assert (pages.available, pages.idle) == (4, 2)
    assert sorted(pages.acquire([], 3)) == [1, 2, 3]  # the end of the prefix goes first
    assert pages.find(keys) == [0]
    assert pages.acquire([0], 0) == []
    assert pages.acquire([], 1) is None  # its only page is held


def test_idle_pages_that_a_request_shares_are_not_counted_as_room():
    pages, keys = Pages(2), keys_of(range(8))
    (page, other) = pages.acquire([], 2)
    pages.publish(page, keys[0])
    pages.release([page, other])
    assert pages.available == 2
    assert pages.acquire([page], 2) is None
    assert (pages.available, pages.idle) == (2, 1)
    assert pages.acquire([page], 1) == [other]


def test_equal_pages_are_published_once():
    pages, (key,) = Pages(2), keys_of(range(4))
    first, second = pages.acquire([], 2)
    pages.publish(first, key)
    pages.publish(second, key)
    pages.release([second])
    assert pages.idle == 0
    assert pages.find([key]) == [first]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_use_ends_with_all_pages_available(seed):
    import random

    rng, pages, held = random.Random(seed), Pages(12), []
    for step in range(300):
        keys = keys_of([rng.randrange(2) for _ in range(8)])
        shared = pages.find(keys)
        if rng.random() < 0.6 and (taken := pages.acquire(shared, 2 - len(shared) + rng.randrange(3))) is not None:
            mine = [*shared, *taken]
            held.append(mine)
            for page, key in zip(mine, keys, strict=False):
                pages.publish(page, key)
        elif held:
            pages.release(held.pop(rng.randrange(len(held))))
        assert 0 <= pages.idle <= pages.available <= 12, step
    for mine in held:
        pages.release(mine)
    assert pages.available == 12
