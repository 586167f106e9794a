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
    assert_eq!(values::arity(250, &[18, 0, 0, 0, 0, 0]), 1);
}

#[test]
fn payloads_of_keys_are_not_shown() {
    let thread = crate::testing::setup();
    let mm = thread.mm();
    let shown = |number: u64, arguments: [u64; 6]| {
        let view = values::View {
            mm: &mm,
            arguments: &arguments,
            result: Some(&Ok(5)),
        };
        let kinds = &super::signatures::of(number)[..values::arity(number, &arguments)];
        text(|out| {
            for (index, kind) in kinds.iter().enumerate() {
                values::write(out, kind, index, &view);
                out.push(' ');
            }
        })
    };
    let session = -3_i64 as u64;
    let secret = crate::testing::alloc_user(&thread, 4096);
    mm.write(secret, b"secret").unwrap();
    let added = shown(248, [0, 0, secret, 6, session, 0]);
    assert_eq!(
        added,
        alloc::format!("NULL NULL {secret:#x} 6 KEY_SPEC_SESSION_KEYRING ")
    );
    for operation in [2, 11, 12] {
        let line = shown(250, [operation, 77, secret, 6, 0, 0]);
        assert!(
            line.contains(&alloc::format!("77 {secret:#x} 6 ")),
            "{line}"
        );
    }
    assert_eq!(
        shown(250, [5, 77, 0x3f01_0000, 0, 0, 0]),
        "KEYCTL_SETPERM 77 KEY_POS_VIEW|KEY_POS_READ|KEY_POS_WRITE|KEY_POS_SEARCH|KEY_POS_LINK|\
         KEY_POS_SETATTR|KEY_USR_VIEW "
    );
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
