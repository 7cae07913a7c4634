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
        r"^peak, in backward +MB\nweights +7\.7\d\d\n(?:\w+ +\d+\.\d+\n){4}total +(\d+\.\d+)$", out, re.MULTILINE
    )
    assert peak
    assert float(peak[1]) > 31
    # each of 4 layers makes one all-gather and one all-to-all forward, and one of each backward
    assert len(re.findall(r"^(?:for|back)ward +all_to_all +\S*ep +8 +4 ", out, flags=re.MULTILINE)) == 2


def test_an_objective_whose_sizes_depend_on_the_data_is_one_line(capsys):
    assert main(["layout", "recipe=toy_contrastive", "--world=1"]) == 2
    error_line(capsys.readouterr().err, "train.objective=contrastive", "next_token")


def test_mistakes_are_faults():
    assert refused(*TOY, "parallel.ep=3", "--world=8").where == "parallel.ep"
    fault = refused("layout", "recipe=toy", "train.micro_batch=1", "parallel.ep=3", "--world=8")
    assert fault.where == "parallel.ep"
    assert "--world" in fault.text  # the other way out
    fault = refused(*TOY, "--world=8", "--rank=8")
    assert (fault.where, fault.value, fault.allowed) == ("--rank", 8, "0 to 7")
