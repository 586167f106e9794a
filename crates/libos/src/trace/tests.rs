//! What single lines look like; the whole is compared with strace itself in tests/apps.

use alloc::string::String;
use alloc::vec;

use super::{filter, flags, structures, values};
use crate::signal::SigInfo;
use bulla_abi::config::Strace;

fn text(write: impl FnOnce(&mut String)) -> String {
    let mut out = String::new();
    write(&mut out);
    out
}

#[test]
fn strings_are_escaped_as_in_c() {
    let quoted = text(|out| values::quoted(out, b"a\"\\\n\x01\x012\xff", true));
    assert_eq!(quoted, r#""a\"\\\n\1\0012\377"..."#);
}

#[test]
fn bits_have_names_and_strangers_are_shown() {
    assert_eq!(
        text(|out| values::open_flags(out, 0o2000102)),
        "O_RDWR|O_CREAT|O_CLOEXEC"
    );
    assert_eq!(text(|out| values::flags(out, flags::WAIT, 0, "0")), "0");
    assert_eq!(
        text(|out| values::flags(out, flags::WAIT, 0x1001, "0")),
        "WNOHANG|0x1000"
    );
    assert_eq!(
        text(|out| values::choice(out, flags::WHENCE, 9)),
        "0x9 /* ??? */"
    );
}

#[test]
fn only_arguments_that_matter_are_shown() {
    assert_eq!(values::arity(257, &[0; 6]), 3);
    assert_eq!(values::arity(257, &[0, 0, 0o100, 0o644, 0, 0]), 4);
    assert_eq!(values::arity(72, &[3, 1, 0, 0, 0, 0]), 2);
    assert_eq!(values::arity(39, &[0; 6]), 0);
}

#[test]
fn signals_tell_who_sent_them() {
    let info = SigInfo::user(15, 0, 7, 1000);
    assert_eq!(
        text(|out| structures::write_signal(out, &info)),
        "SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=7, si_uid=1000}"
    );
    let info = SigInfo::fault(11, 1, 0x10);
    assert_eq!(
        text(|out| structures::write_signal(out, &info)),
        "SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10}"
    );
    assert_eq!(structures::signal_name(33), "SIGRT_1");
}

#[test]
fn filters_know_calls_and_classes() {
    let words = |calls: &[&str]| Strace {
        calls: calls.iter().map(|word| String::from(*word)).collect(),
        processes: vec![],
    };
    assert!(filter::Filter::new(&words(&["read", "%file"])).is_ok());
    assert!(filter::Filter::new(&words(&["!read", "write"])).is_ok());
    let error = filter::Filter::new(&words(&["opne"])).err();
    let error = error.map(|error| alloc::format!("{error}"));
    assert!(error.is_some_and(|error| error.contains("\"opne\"")));
}
