"""Runs test modules of Python's own suite and prints one line for each test: `outcome id`.

    run.py MODULE..

As `python3 -m test` does it: no extra resources (network, much memory or time), in a directory of
its own. What the tests themselves print goes to standard error.
"""
import faulthandler
import os
import sys
import tempfile
import unittest

report = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
runner = os.getpid()


class Result(unittest.TextTestResult):
    """Tells how each test ended. A test with subtests fails when one of them does."""

    def startTest(self, test):
        super().startTest(test)
        self.failed = None

    def tell(self, outcome, test):
        # Forked children of a test may run into this as well.
        if os.getpid() == runner:
            report.write(f"{outcome} {test.id().split(' ')[0]}\n")

    def addSuccess(self, test):
        super().addSuccess(test)
        self.tell("ok", test)

    def addError(self, test, error):
        super().addError(test, error)
        self.tell("error", test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.tell("failed", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.tell("skipped", test)

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.tell("ok", test)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.tell("failed", test)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None and not self.failed:
            self.failed = True
            self.tell("failed", test)


if __name__ == "__main__":
    import test.support

    test.support.use_resources = []
    faulthandler.enable()
    # A test that hangs says where.
    faulthandler.dump_traceback_later(100, repeat=True)
    os.chdir(tempfile.mkdtemp())
    names = [name if name.startswith("test.") else f"test.{name}" for name in sys.argv[1:]]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    unittest.TextTestRunner(sys.stderr, verbosity=2, resultclass=Result).run(suite)
    report.write("end\n")
    report.flush()
    # Threads that a test left behind must not keep the process.
    os._exit(0)
