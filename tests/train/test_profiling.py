"""When a trace begins and ends."""

from train.profiling import TRIGGER, Profiler


def test_profiler_traces_its_window_and_what_the_trigger_file_asks_for(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: events.append(("start", folder.name)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: events.append(("stop",)))
    profiler = Profiler(tmp_path, start=3, steps=2, note=lambda text: None)
    for step in range(40):
        if step == 11:
            (tmp_path / TRIGGER).touch()
        if profiler.due(step):
            profiler(step, None)
            events.append(step)
    assert events == [("start", "3"), 3, ("stop",), 5, ("start", "20"), 20, ("stop",), 22]
    assert not (tmp_path / TRIGGER).exists()
    (tmp_path / TRIGGER).touch()
    profiler(40, None)
    profiler.finish(41, None)
    profiler.close()
    assert events[-2:] == [("start", "40"), ("stop",)]
