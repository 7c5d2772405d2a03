from specdecodes_template.repeat import Repeat

from specdecodes.testing import check_drafter


def test_keeps_the_contract():
    check_drafter(Repeat)
