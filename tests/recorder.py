"""A callback for tests of what fits tell their callbacks."""


class Recorder:
    """Writes down which tasks began and ended; raises ``error`` when ``interrupted`` begins.

    ``n_announced`` is the number of steps that the outermost fit has announced.
    """

    def __init__(self, interrupted=None, error=KeyboardInterrupt, max_propagation_depth=None):
        self.max_propagation_depth = max_propagation_depth
        self.interrupted, self.error = interrupted, error
        self.events = []
        self.n_announced = None

    def _write(self, event, context):
        self.events.append((event, context.estimator_name, context.task_name))
        if self.interrupted == self.events[-1]:
            raise self.error

    def setup(self, estimator, context):
        self._write("setup", context)

    def on_fit_task_begin(self, estimator, context):
        if context.parent is None:
            self.n_announced = context.max_subtasks
        self._write("begin", context)

    def on_fit_task_end(self, estimator, context):
        self._write("end", context)

    def teardown(self, estimator, context):
        self._write("teardown", context)

    def begun(self):
        return [(name, task) for event, name, task in self.events if event == "begin"]
