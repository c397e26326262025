import threading

import torch
import torch._dynamo
from torch._dynamo import eval_frame

from jpmhc.autodiff.stance import uncompiled


def stance():
    return eval_frame._stance.stance


def test_threads_that_overlap_leave_the_stance_as_they_found_it():
    assert stance() == "default"
    first_entered, second_entered, first_left = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with uncompiled():
            first_entered.set()
            second_entered.wait(5)
        first_left.set()

    def second():
        first_entered.wait(5)
        with uncompiled():
            second_entered.set()
            first_left.wait(5)
            seen.append(stance())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert seen == ["force_eager"]
        assert stance() == "default"
    finally:
        eval_frame._set_stance(eval_frame.DynamoStance())


def test_nesting_and_exceptions_restore_the_stance_of_the_caller():
    with torch.compiler.set_stance("eager_on_recompile"):
        try:
            with uncompiled():
                with uncompiled():
                    assert stance() == "force_eager"
                assert stance() == "force_eager"
                raise KeyError
        except KeyError:
            assert stance() == "eager_on_recompile"
    assert stance() == "default"
