import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from edlm.config import ConfigurationError, parse
from edlm.zero_shot.detokenizers import LM1B, AGNews, Lambada, Papers, PennTreebank, Unchanged, WikiText
from edlm.zero_shot.scoring import ZeroShot

BY_WORDS = [WikiText(), LM1B(), Papers(), PennTreebank()]
# Words and marks as the formats write them, but for the ambiguous single quotes.
WORDS = ["the", "cat", "Users", "12", "U.S.", "<unk>", "@xmath0", "x-ray", "é", "N", "\\/"]
MARKS = ["@-@", "@,@", "@.@", "'s", "'t", "n't", "...", "", *'.,;()[]"=$%/–']
lines = st.lists(st.sampled_from(WORDS + MARKS), max_size=12).map(" ".join)
texts = st.lists(lines, max_size=4).map("\n".join)


def letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (" = Robert Boulter = ", "= Robert Boulter ="),
        (" = = Career = = \n \n = = = 2000 – 2005 = = = ", "== Career ==\n\n=== 2000 – 2005 ==="),
        (" = = ", "= ="),
        (" a starring @-@ role , worth 1 @,@ 500 or 0 @.@ 7 . ", "a starring-role, worth 1,500 or 0.7."),
        (' only becoming " lobster red " on cooking . ', 'only becoming "lobster red" on cooking.'),
        (' He said : " Yes ( he did ) ; no ! " ', 'He said: "Yes (he did); no!"'),
        (' 5 " of rain ', '5 " of rain'),
        (
            " It 's what Teddy 's didn 't say ; they 'll see O 'Neil ",
            "It's what Teddy's didn't say; they'll see O'Neil",
        ),
        (" the Beach Boys ' songs , known as ' A ' and ' B ' ", "the Beach Boys' songs, known as 'A' and 'B'"),
        (" over $ 3 @,@ 000 , 34 % at 50 ° N ", "over $3,000, 34% at 50° N"),
        (" and / or [ ... ] <unk> — so ", "and / or [...] <unk> — so"),
    ],
)
def test_wikitext_runs_again(before, after):
    assert WikiText().detokenize(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (" pierre <unk> N years old will join the board nov. N ", "pierre ? 1 years old will join the board nov. 1"),
        (" it does n't say it 's the <unk> ' money ", "it doesn't say it's the ?' money"),
        (" we 've $ N billion or us$ N N\\/N and # N ", "we've $1 billion or us$1 1/1 and #1"),
        (" a N-year bond by n.v. rose N N N ", "a 1-year bond by n.v. rose 1 1 1"),
    ],
)
def test_the_treebank_runs_again(before, after):
    assert PennTreebank().detokenize(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('What is it ? " Wait ! " he said , and left .', 'What is it? "Wait!" he said, and left.'),
        ("See http : / / www.example.com / a for more .", "See http://www.example.com/a for more."),
        ("They didn 't pay $ 10 or £ 7 ( 5 / 7 ) .", "They didn't pay $10 or £7 (5/7)."),
        ("The bank called it ' a step ' for members ' sake .", "The bank called it 'a step' for members' sake."),
        ("A skill -- perfected by 98th-ranked U.S. hunters", "A skill -- perfected by 98th-ranked U.S. hunters"),
    ],
)
def test_news_runs_again(before, after):
    assert LM1B().detokenize(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("it is well - known @xcite , see @xmath0 .", "it is well - known @xcite, see @xmath0."),
        ("( 50% of 12 g / dl ) [ 1 ] \n the next ; one", "(50% of 12 g/dl) [1]\nthe next; one"),
    ],
)
def test_papers_run_again(before, after):
    assert Papers().detokenize(before) == after


def test_lambada_stands_on_a_line_of_its_own_with_plain_quotes():
    assert Lambada().detokenize(" “ah,” he said, ‘no’ \n") == '\n"ah," he said, ‘no’'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the Web #39;s price surged past  #36;46\\a barrel", "the Web's price surged past $46 a barrel"),
        ("warns about  quot;phishing quot; at AT amp;T", 'warns about "phishing" at AT&T'),
        ("&lt;A HREF=x&gt;DELL.O&lt;/A&gt; ends; so", "<A HREF=x>DELL.O</A> ends; so"),
    ],
)
def test_the_codes_of_ag_news_are_characters_again(before, after):
    assert AGNews().detokenize(before) == after


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))) | texts)
def test_no_letter_or_digit_is_lost_or_moved(text):
    for detokenizer in (Unchanged(), WikiText(), LM1B(), Papers(), Lambada()):
        assert letters(detokenizer.detokenize(text)) == letters(text)
    assert letters(AGNews().detokenize(text.replace(";", ","))) == letters(text)


@settings(max_examples=100, deadline=None)
@given(texts)
def test_of_the_treebank_placeholders_alone_are_lost(text):
    kept = [word for word in text.split() if word not in ("N", "<unk>")]
    restored = PennTreebank().detokenize(text)
    assert letters(restored).replace("1", "") == letters("".join(kept)).replace("1", "")
    assert restored.count("1") == text.count("1") + text.split().count("N")
    assert restored.replace("?", "<unk>").count("<unk>") == text.count("<unk>")


@settings(max_examples=100, deadline=None)
@given(texts)
def test_nothing_goes_but_spaces_and_the_marks_inside_words(text):
    for detokenizer in (WikiText(), LM1B(), Papers()):
        expected = text
        if detokenizer == WikiText():
            for mark in ("-", ",", "."):
                expected = expected.replace(f"@{mark}@", mark)
        assert detokenizer.detokenize(text).replace(" ", "") == expected.replace(" ", "")
        assert detokenizer.detokenize(text).count("\n") == text.count("\n")


@settings(max_examples=100, deadline=None)
@given(texts)
def test_text_that_runs_already_is_left_alone(text):
    for detokenizer in BY_WORDS:
        once = detokenizer.detokenize(text)
        assert detokenizer.detokenize(once) == once
    assert Lambada().detokenize(Lambada().detokenize(text)) == Lambada().detokenize(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abc .,", max_size=30).map(lambda text: " ".join(text.split())))
def test_what_the_formats_took_apart_comes_together(text):
    apart = "".join(f" {c}" if c in ".,-" else c for c in text).replace(" .", " . ").replace(" ,", " , ")
    together = " ".join(apart.split()).replace(" .", ".").replace(" ,", ",")
    for detokenizer in BY_WORDS[:3]:
        assert detokenizer.detokenize(f" {apart} ") == together


def words_of_bert(text: str) -> list[str]:
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(BertNormalizer(lowercase=True).normalize_str(text))]


@settings(max_examples=100, deadline=None)
@given(lines)
def test_berts_tokenizer_reads_news_alike_with_and_without_detokenisation(line):
    """So says workflows/experiments/lm1b.yaml, which trains on the text as published."""
    assert words_of_bert(LM1B().detokenize(line)) == words_of_bert(line)


def test_berts_tokenizer_tells_a_pound_that_stands_apart():
    assert words_of_bert(LM1B().detokenize("for £ 5")) != words_of_bert("for £ 5")


def test_a_detokenizer_that_does_not_exist_is_refused():
    settings = {"name": "x", "corpus": {"kind": "embedded"}, "detokenizer": {"kind": "wikitex"}}
    with pytest.raises(ConfigurationError, match=r"detokenizer\.kind: there is no 'wikitex'; did you mean 'wikitext'"):
        parse(ZeroShot, settings)
