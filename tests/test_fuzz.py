"Damaged and made-up files and words: `tests/fuzz.py` finds a row, a refusal or success for each; what once failed stays here."

import fuzz
import pytest
from lightly_curate.core.config import check_config, check_overrides, compose_config
from lightly_curate.core.errors import CurateError, EmbeddingsError
from lightly_curate.embed.embedding_csv import read_npy


def test_a_few_hundred_cases():
    outcome = fuzz.fuzz(300, seed=1, n_workers=2)
    assert not outcome.findings, outcome.text()
    assert sum(o.total() for o in outcome.counts.values()) == 300


@pytest.mark.slow
def test_twenty_thousand_cases():
    outcome = fuzz.fuzz(20_000, seed=0, n_workers=2)
    print(outcome.text())
    assert not outcome.findings, outcome.text()


def test_a_case_is_its_number():
    "Made again from seed and number, and another one for another number."
    for kind in sorted(set(fuzz.KINDS)):
        assert fuzz.make_case(kind, 5, 7) == fuzz.make_case(kind, 5, 7)
        assert len({fuzz.make_case(kind, 5, o)[1] for o in range(20)}) > 5


@pytest.fixture
def broken(monkeypatch):
    "Cases tried in this process, where a part of the program can be broken."
    monkeypatch.setattr(fuzz, 'call', lambda function, *args, **_: fuzz.try_batch(*args))


def test_a_traceback_is_found(broken, monkeypatch):
    def fail(path): raise ZeroDivisionError
    monkeypatch.setitem(fuzz.TRY_ONE, 'csv', fail)
    monkeypatch.setattr(fuzz, 'try_cases', fuzz.try_cases)
    with pytest.raises(ZeroDivisionError): fuzz.try_cases('csv', 0, [0, 1])


def test_a_hang_and_too_much_memory_are_found():
    "The worker that tries a case is killed, and the case is told."
    for function, limits, words in (('time:sleep', {'seconds': .5}, 'no|longer|0.5 s'), ('fuzz:take_memory', {'seconds': 60., 'memory': 300_000_000}, 'memory')):
        with pytest.raises(fuzz.Gone, match=words): fuzz.call(function, 30, **limits)


def test_a_message_that_cannot_be_shown_is_found(broken, monkeypatch):
    def fail(path): raise CurateError('a\x1b[2Jb')
    monkeypatch.setitem(fuzz.TRY_ONE, 'csv', fail)
    assert 'cannot be shown' in fuzz.try_cases('csv', 0, [0])[0]
    assert fuzz.told('a reason') == 'row' and 'cannot be shown' in fuzz.told('two\nlines') and 'cannot be shown' in fuzz.told('in /tmp/x')


@pytest.mark.parametrize('word', [f'lightly.seed={"9"*5000}', f'stopping_condition.n_samples=-{"1"*4400}', 'lightly.seed=' + '{a:'*400])
def test_words_that_once_failed(word):
    fault, = check_overrides([word])
    assert 'cannot read' in fault and len(fault) < 500


def test_a_number_for_a_network_that_once_failed():
    assert any('lightly.model.name is 0, allowed' in o for o in check_config(compose_config(['lightly.model.name=0'])))


@pytest.mark.parametrize('text', ['\x96\x1b[2J nan', '(' * 400, '{', "{'shape': (9999999999999999999999, 1), 'fortran_order': False, 'descr': '<f4'}",
                                  "{'shape': (9, 3), 'fortran_order': False, 'descr': '\x1b\x07'}"])
def test_headers_that_once_failed(tmp_path, text):
    (tmp_path/'a.npy').write_bytes(b'\x93NUMPY\x01\0' + len(text).to_bytes(2, 'little') + text.encode('latin-1') + bytes(108))
    with pytest.raises(EmbeddingsError) as error: read_npy(tmp_path/'a.npy', 9)
    assert str(error.value).isprintable()
