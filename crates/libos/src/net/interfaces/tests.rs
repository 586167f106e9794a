//! A host that answers questions about its network as it must not.

use alloc::vec;
use alloc::vec::Vec;

use super::message::{Header, put_message};
use super::*;
use crate::testing::{self, on_host_call};

fn link(index: u32, name: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 1, 0];
    body.extend_from_slice(&index.to_le_bytes());
    body.extend_from_slice(&0x1_1043u32.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    put_attribute(&mut body, 3, name);
    put_attribute(&mut body, 4, &1400u32.to_le_bytes());
    body
}

fn messages_of(kind: u16, bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header {
        kind,
        flags: 0,
        sequence: 0,
        port: 0,
    };
    for body in bodies {
        put_message(&mut out, header, body);
    }
    out
}

/// Two interfaces to an answer, as a host does that has little room.
fn paged(all: Vec<Vec<u8>>) {
    on_host_call(move |call, [what, skip, ..], buffer| {
        assert_eq!(call, HostCall::NetQuery);
        assert_eq!(what, query::LINKS);
        let rest = all.get(skip as usize..).unwrap_or_default();
        let bytes = messages_of(16, &rest[..rest.len().min(2)]);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        bytes.len() as i64
    });
}

#[test]
fn a_list_comes_in_parts() {
    testing::setup();
    paged(
        (1..=5)
            .map(|index| link(index, alloc::format!("eth{index}\0").as_bytes()))
            .collect(),
    );
    let names: Vec<String> = list().unwrap().into_iter().map(|each| each.name).collect();
    assert_eq!(names, ["eth1", "eth2", "eth3", "eth4", "eth5"]);
    let found = named("eth3:1").unwrap();
    assert_eq!((found.index, found.mtu, found.flags), (3, 1400, 0x1_1043));
    assert_eq!(named("eth9").unwrap_err(), ENODEV);
}

#[test]
fn two_interfaces_are_never_one() {
    testing::setup();
    // One twice, one of another's name, one without a name.
    paged(vec![
        link(1, b"lo\0"),
        link(1, b"eth0\0"),
        link(2, b"lo\0"),
        link(3, b"\0"),
        link(4, b"eth0\0"),
    ]);
    let found: Vec<u32> = list().unwrap().into_iter().map(|each| each.index).collect();
    assert_eq!(found, [1, 4]);
}

#[test]
fn without_an_answer_there_is_the_loopback() {
    testing::setup();
    on_host_call(|_, _, _| -38);
    let all = list().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].name.as_str(), all[0].flags), ("lo", 0x1_0049));
    assert_eq!(entries(What::Address).unwrap().len(), 2);
    assert_eq!(entries(What::Route).unwrap(), []);
    assert_eq!(ioctl::list().unwrap().len(), 1);
}

#[test]
fn wrong_answers_are_errors() {
    testing::setup();
    // Longer than the room, of no message, of a kind that was not asked for, cut.
    for answer in [ROOM as i64 + 1, i64::MAX, 16, 3, 64] {
        on_host_call(move |_, _, buffer| {
            buffer[..64].fill(0);
            answer
        });
        // The first is no answer at all.
        match list() {
            Ok(all) => assert!(answer > ROOM as i64 && all[0].name == "lo", "{answer}"),
            Err(error) => assert_eq!(error, EIO, "{answer}"),
        }
    }
    on_host_call(|_, _, buffer| {
        let bytes = messages_of(20, &[link(1, b"lo\0")]);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        bytes.len() as i64
    });
    assert_eq!(list().unwrap_err(), EIO);
}

#[test]
fn an_endless_list_ends() {
    testing::setup();
    on_host_call(|_, [_, skip, ..], buffer| {
        let all: Vec<Vec<u8>> = (0..64)
            .map(|at| link(skip as u32 + at + 1, b"lo\0"))
            .collect();
        let bytes = messages_of(16, &all);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        bytes.len() as i64
    });
    assert_eq!(list().unwrap_err(), ENOBUFS);
}
