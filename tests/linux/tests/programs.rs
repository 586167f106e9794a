//! One test for each program.

use bulla_test_linux::check;

#[test]
fn signals() {
    check("signals");
}

#[test]
fn processes() {
    check("processes");
}

#[test]
fn threads() {
    check("threads");
}

#[test]
fn timers() {
    check("timers");
}

#[test]
fn ipc() {
    check("ipc");
}

#[test]
fn storm() {
    check("storm");
}

#[test]
fn aliases() {
    check("aliases");
}

#[test]
fn siblings() {
    check("siblings");
}

#[test]
fn notices() {
    check("notices");
}

#[test]
fn faults() {
    check("faults");
}

#[test]
fn futexes() {
    check("futexes");
}
