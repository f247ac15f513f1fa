from __future__ import annotations

from mmserve.deploy.memo import Memo
from mmserve.deploy.merge import merge_metrics
from web.operations.exposition import Family, Sample, render


def text(value: float) -> str:
    requests = Family("requests_total", "counter", "Requests.", (Sample(value, (("kind", 'a {"b"} c'),)),))
    return render([requests, Family("ready", "gauge", "Ready.", (Sample(1.0),))], (("model", "m"),))


def test_each_sample_says_whose_it_is_and_each_family_is_described_once() -> None:
    merged = merge_metrics({"r1": text(3), "r2": text(4)})
    assert merged.count("# HELP requests_total ") == merged.count("# TYPE ready ") == 1
    lines = merged.splitlines()
    at = lines.index("# TYPE requests_total counter")
    assert [line.split("{")[1].split(",")[0] for line in lines[at + 1 : at + 3]] == ['replica="r1"', 'replica="r2"']
    assert [line.rpartition(" ")[2] for line in lines[at + 1 : at + 3]] == ["3", "4"]
    assert merge_metrics({"r": "# HELP up Up.\n# TYPE up gauge\nup 1\n"}).endswith('up{replica="r"} 1\n')


def test_a_family_that_one_replica_lacks_is_there_all_the_same() -> None:
    one, both = (
        "# HELP a A.\n# TYPE a gauge\na 1\n",
        "# HELP a A.\n# TYPE a gauge\na 2\n# HELP b B.\n# TYPE b gauge\nb 3\n",
    )
    assert merge_metrics({"x": one, "y": both}).count("\nb{") == 1


def test_a_memo_keeps_the_last_names_only() -> None:
    memo = Memo(size=2)
    memo.learn(b'{"data": [{"id": "pic-1"}, {"id": "pic-2"}, {"id": 3}, null]}', b"key")
    memo.learn(b'{"id": "resp-1"}', b"other")
    assert [memo.get(name) for name in ("pic-1", "pic-2", "resp-1")] == [None, b"key", b"other"]
    for useless in (b"no JSON", b"[1]", b'{"data": 3}', b""):
        memo.learn(useless, b"key")
    assert len(memo) == 2
