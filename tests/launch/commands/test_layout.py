"""`octavo layout`."""

import re

from launch.cli import main
from tests.launch.refused import refused
from tests.printed import error_line

TOY = ["layout", "recipe=toy", "parallel=ep8", "train.micro_batch=1"]


def test_one_rank_of_the_toy_on_eight(capsys):
    assert main([*TOY, "--world=8", "--rank", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rank 3 of 8\n")
    assert re.search(r"^ep +8 ", out, flags=re.MULTILINE)
    # an eighth of 15.5 M parameters in fp32, and twice that of moments
    assert re.search(r"^held after backward +MB$", out, flags=re.MULTILINE)
    assert re.search(r"^weights +7\.7\d\d\ngradients +7\.7\d\d\noptimizer +15\.\d+$", out, flags=re.MULTILINE)
    # gathered experts are on top
    peak = re.search(
        r"^peak, in backward +MB\nweights +7\.7\d\d\n(?:\w+ +\d+\.\d+\n){5}total +(\d+\.\d+)$", out, re.MULTILINE
    )
    assert peak
    assert float(peak[1]) > 31
    # each of 4 layers makes one all-gather and one all-to-all forward, and one of each backward
    assert len(re.findall(r"^(?:for|back)ward +all_to_all +\S*ep +8 +4 ", out, flags=re.MULTILINE)) == 2


def test_an_objective_whose_sizes_depend_on_the_data_is_one_line(capsys):
    assert main(["layout", "recipe=toy_contrastive", "--world=1"]) == 2
    error_line(capsys.readouterr().err, "train.objective=contrastive", "next_token")


def test_ranks_that_share_sequences_show_what_they_exchange(capsys):
    """A ring of 4 with 16 positions a rank, k and v of 1024 bytes each, in 4 layers. The last rank sends its own down,
    then the early half of rank 0's and of rank 1's, and receives three early halves."""
    words = ["recipe=toy", "data.seq_len=64", "train.micro_batch=1", "train.global_batch=1", "parallel.cp=4"]
    assert main(["layout", *words, "parallel.cp_kind=ring", "--world=4", "--rank=3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^cp +4 +ranks that share a sequence$", out, flags=re.MULTILINE)
    assert re.search(r"^forward +send +cp +4 +12 +0\.131 +0\.131$", out, flags=re.MULTILINE)
    assert re.search(r"^forward +receive +cp +4 +12 +0\.098 +0\.000$", out, flags=re.MULTILINE)


PIPELINE = [
    "layout", "recipe=toy", "parallel=pp2_ep2", "train.micro_batch=1", "model.num_layers=3", "data.seq_len=64",
    "model.vocab_size=4096", "train.loss_chunk=64", "--world=8",
]  # fmt: skip


def test_a_line_for_each_stage_of_a_pipeline(capsys, monkeypatch):
    monkeypatch.setattr("launch.stages.host.cores", lambda: 1.0)  # no processes beside this one
    assert main([*PIPELINE, "--stages=all", "--gpu-gb=4"]) == 0
    out = capsys.readouterr().out
    held = re.findall(r"^ +(\d+)  (\d+) +(\d+-\d+) +\d\.\d\d(?: +\d+\.\d\d){8}$", out, re.MULTILINE)
    assert held == [("0", "0", "0-1"), ("4", "1", "2-2")]
    once = re.findall(r"^ +\d+  once a step((?: +\d+\.\d{3})+)$", out, re.MULTILINE)
    assert len(once) == 2
    for line in once:
        ep, pp, experts, dense, other, node, network = map(float, line.split())
        assert (ep, pp) == (0, 0)
        assert min(experts, dense) > 0.001
        assert abs(node - experts - dense - other) < 0.002  # all eight ranks are in one node
        assert network == 0


def test_a_pipeline_that_does_not_fit_is_refused_before_anything_is_built():
    fault = refused("layout", "recipe=cpt_6t", "parallel.pp=8", "--world=512", "--gpu-gb=80")
    assert fault.where == "parallel"
    assert all(len(layout) == 4 for layout in fault.allowed)


def test_a_rank_of_any_layout_is_compared_with_a_gpu(capsys):
    assert main([*TOY, "--world=8", "--gpu-gb=4"]) == 0
    assert re.search(r"^fits: at most \d+\.\d MB; a GPU of 4 GB", capsys.readouterr().out, re.MULTILINE)
    fault = refused("layout", "recipe=cpt_30b_8gpu", "--world=8", "--gpu-gb=40")
    assert (fault.where, fault.allowed) == ("model", 25)  # layers


def test_mistakes_are_faults():
    assert refused(*TOY, "parallel.ep=3", "--world=8").where == "parallel.ep"
    fault = refused("layout", "recipe=toy", "train.micro_batch=1", "parallel.ep=8", "--world=4")
    assert fault.where == "parallel.ep"
    assert "--world" in fault.text  # the other way out
    fault = refused(*TOY, "--world=8", "--rank=8")
    assert (fault.where, fault.value, fault.allowed) == ("--rank", 8, "0 to 7")
    fault = refused(*TOY, "--world=8", "--stages=all")
    assert (fault.where, fault.value, fault.allowed) == ("--stages", "all", "use parallel.pp=2 or more")
    assert refused(*PIPELINE, "--rank=0", "--stages=all").where == "--stages"
