"""Server-sent events are read whole, however the network cuts them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.client.sse import Events


@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1), min_size=1
    ),
    cuts=st.data(),
)
@settings(deadline=None)
def test_events_do_not_depend_on_where_the_pieces_were_cut(texts, cuts):
    whole = "".join(f": a comment\r\nid: 1\ndata: {text}\r\n\r\n" for text in texts).encode()
    events, actual = Events(), []
    while whole:
        size = cuts.draw(st.integers(1, len(whole)))
        actual += events.feed(whole[:size])
        whole = whole[size:]
    assert actual == texts
