"""An observer's `manager` is set by code that may be its owner's, so the manager holds no lock meanwhile."""

import contextlib
import threading

import pytest

from rollcast import EventFilter, MultiChainStreamObserver, StreamingManager
from rollcast.errors import InputError
from rollcast.testing import EventCapture


class Told(EventCapture):
    """Calls `on_told(manager)` whenever its `manager` is set, and `on_asked()` whenever it is read."""

    _manager = None

    def __init__(self, on_told=lambda manager: None, on_asked=lambda: None):
        super().__init__()
        self.on_told, self.on_asked = on_told, on_asked

    @property
    def manager(self):
        self.on_asked()
        return self._manager

    @manager.setter
    def manager(self, manager):
        self._manager = manager
        self.on_told(manager)


def emit(manager):
    with manager.run(chains=1) as run, run.chain():
        pass


def in_another_thread(function, *arguments):
    """Whether it returned, and did not wait for what this thread holds."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a composite"])
def test_what_waits_for_another_thread_while_its_manager_is_set_holds_nobody_up(inside):
    """When it is added, and when it is removed; the same when its manager is read."""
    manager, returned = StreamingManager(), []

    def wait(*_):
        returned.append(in_another_thread(emit, manager))

    told = Told(wait, wait)
    observer = MultiChainStreamObserver() if inside else told
    if inside:
        observer.add_global_observer(told)
    manager.add_observer(observer)
    assert told._manager is manager
    emit(manager)
    manager.remove_observer(observer)
    assert told._manager is None
    manager.close()
    assert returned
    assert all(returned)


def test_what_emits_while_its_manager_is_set_is_added():
    """And gets what comes then."""
    manager = StreamingManager()
    told = Told(lambda it: it is not None and emit(it))
    other = EventCapture()
    manager.add_observer(other)
    manager.add_observer(told)
    emit(manager)
    manager.close()
    assert len(other.of("run_end")) == 2
    assert len(told.of("run_end")) == 1


def test_what_leaves_while_its_manager_is_set_is_gone():
    """It is not told of its manager again."""
    manager, seen = StreamingManager(), []

    def leave(it):
        seen.append(it)
        if len(seen) == 1:
            manager.remove_observer(told)  # before it is added: ignored

    told = Told(leave)
    manager.add_observer(told)
    manager.remove_observer(told)
    assert seen == [manager, None]
    assert manager.observers == []
    manager.close()


def test_what_cannot_be_told_is_not_added_and_may_be_added_elsewhere():
    """Neither are those that came with it."""
    manager, other = StreamingManager(), StreamingManager()

    def refuse(it):
        if it is manager:
            raise ValueError

    told, beside = Told(refuse), EventCapture()
    both = MultiChainStreamObserver()
    both.add_global_observer(beside)
    both.add_global_observer(told)
    with pytest.raises(InputError, match="the manager of Told cannot be set"):
        manager.add_observer(both)
    assert (both.manager, beside.manager, told.manager) == (None, None, None)
    other.add_observer(both)
    assert (both.manager, beside.manager, told.manager) == (other, other, other)
    for each in (manager, other):
        each.close()


def test_a_leaf_of_two_is_told_once_and_belongs_until_both_are_gone():
    """Also a leaf that comes with a refresh."""
    manager, seen = StreamingManager(), []
    shared, late = Told(seen.append), Told()
    one, other = MultiChainStreamObserver(), MultiChainStreamObserver()
    one.add_global_observer(shared)
    other.add_chain_observer("chain_0", shared)
    manager.add_observer(one)
    manager.add_observer(other)
    manager.remove_observer(one)
    assert seen == [manager]
    other.add_global_observer(late)
    assert late.manager is manager
    manager.remove_observer(other)
    assert seen == [manager, None]
    assert late.manager is None
    manager.close()


def test_whatever_threads_do_each_observer_knows_where_it_is():
    """Adding the same one twice at once is refused to one of them."""
    manager = StreamingManager()
    shared = [EventCapture(EventFilter(types="run_end")) for _ in range(3)]
    groups = [MultiChainStreamObserver() for _ in range(3)]
    for group in groups:
        for each in shared[:2]:
            group.add_global_observer(each)

    def come_and_go(number):
        for i in range(60):
            each = [*groups, shared[2]][(number + i) % 4]
            with contextlib.suppress(InputError):
                manager.add_observer(each)
            if (number * 7 + i) % 3:
                manager.remove_observer(each)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    added = manager.observers
    with_leaves = {id(each) for each in added}
    with_leaves |= {id(leaf) for each in added for leaf in each.leaves()}
    for each in (*groups, *shared):
        assert (each.manager is manager) == (id(each) in with_leaves)
    for each in added:
        manager.remove_observer(each)
    assert {each.manager for each in (*groups, *shared)} == {None}
    manager.close()
