"""Performance history tables as Hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st

from helios_batch.helios.history import BINS, Depth, History, ModelHistory, Request, Spent


def request(row: int, *sure: int, tokens: int = 100) -> Request:
    """A request by how many of its tokens each depth is sure of, shallow first."""
    first = [now - before for before, now in zip((0, *sure), sure, strict=False)]
    left = (*first, tokens - max(sure, default=0))
    return Request(row, tokens, sure, (*sure[:-1], tokens), left, float(tokens))


def model(*depths: tuple[float, int], requests: int = 1, sure: float = 1.0) -> ModelHistory:
    """A candidate by the work and the batch of each depth; tried, a unit of work takes a second."""
    made = [
        Depth(place + 1, work, int(work * 100), place + 1, batch)
        for place, (work, batch) in enumerate(depths)
    ]
    made[-1].tried = Spent(100 * made[-1].work, 100)
    seen = [request(row, *[round(100 * sure)] * (len(depths) - 1), 100) for row in range(requests)]
    return ModelHistory("t", made, seen, bytes_read=100, read_seconds=1.0)


def spent(draw: st.DrawFn, work: int) -> Spent:
    """What ten tokens took, or none."""
    return Spent(draw(st.integers(1, 9)) * work / 10, draw(st.sampled_from([0, 10])))


@st.composite
def model_histories(draw: st.DrawFn, least_requests: int = 1) -> ModelHistory:
    """A candidate of up to four depths; deeper ones are surer, cost more and hold fewer rows."""
    count = draw(st.integers(1, 4))
    works = sorted(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count, unique=True)))
    batches = sorted(
        draw(st.lists(st.integers(0, 8), min_size=count, max_size=count)), reverse=True
    )
    depths = [
        Depth(
            layers=place + 1,
            work=float(work),
            weights=1000 * work,
            kv_per_token=place + 1,
            batch=batch,
            tried=spent(draw, work),
            served=spent(draw, work),
        )
        for place, (work, batch) in enumerate(zip(works, batches, strict=True))
    ]
    depths[-1].tried.tokens = 10
    rows = draw(st.lists(st.integers(0, 9), min_size=least_requests, max_size=5, unique=True))
    requests = []
    for row in rows:
        tokens = draw(st.integers(1, 20))
        sure = sorted(draw(st.lists(st.integers(0, tokens), min_size=count, max_size=count)))
        requests.append(request(row, *sure, tokens=tokens))
    return ModelHistory(
        tokenizer=draw(st.sampled_from(["one", "other"])),
        depths=depths,
        requests=requests,
        reliability=[[(0, row) for row in range(BINS)] for _ in depths],
        bytes_read=1000,
        read_seconds=draw(st.integers(0, 3)) / 10,
    )


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A table of up to three candidates, one of which memory holds at its shallowest at least."""
    models = draw(st.lists(model_histories(), min_size=1, max_size=3))
    models[0].depths[0].batch = max(1, models[0].depths[0].batch)
    return History({f"model-{place}": made for place, made in enumerate(models)})
