//! /sys/class/net: a directory for each interface.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Interface;
use crate::Result;
use crate::errno::{EINVAL, ENOENT};
use crate::fs::inode::FileType;

/// A place below /sys/class/net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Root,
    Interface(String),
    Statistics(String),
    /// A file of an interface's directory.
    File(String, &'static str),
    /// A file of its `statistics`.
    Counter(String, &'static str),
}

const FILES: &[&str] = &[
    "addr_assign_type",
    "addr_len",
    "address",
    "broadcast",
    "carrier",
    "carrier_changes",
    "carrier_down_count",
    "carrier_up_count",
    "dev_id",
    "dev_port",
    "dormant",
    "duplex",
    "flags",
    "ifalias",
    "ifindex",
    "iflink",
    "link_mode",
    "mtu",
    "name_assign_type",
    "netdev_group",
    "operstate",
    "proto_down",
    "speed",
    "testing",
    "tx_queue_len",
    "type",
    "uevent",
];

/// Names, and the places of these counters in `struct rtnl_link_stats64`.
const COUNTERS: &[(&str, usize)] = &[
    ("collisions", 9),
    ("multicast", 8),
    ("rx_bytes", 2),
    ("rx_compressed", 21),
    ("rx_crc_errors", 12),
    ("rx_dropped", 6),
    ("rx_errors", 4),
    ("rx_fifo_errors", 14),
    ("rx_frame_errors", 13),
    ("rx_length_errors", 10),
    ("rx_missed_errors", 15),
    ("rx_nohandler", 23),
    ("rx_over_errors", 11),
    ("rx_packets", 0),
    ("tx_aborted_errors", 16),
    ("tx_bytes", 3),
    ("tx_carrier_errors", 17),
    ("tx_compressed", 22),
    ("tx_dropped", 7),
    ("tx_errors", 5),
    ("tx_fifo_errors", 18),
    ("tx_heartbeat_errors", 19),
    ("tx_packets", 1),
    ("tx_window_errors", 20),
];

const STATISTICS: &str = "statistics";

impl Node {
    pub fn kind(&self) -> FileType {
        match self {
            Node::Root | Node::Interface(_) | Node::Statistics(_) => FileType::Directory,
            Node::File(..) | Node::Counter(..) => FileType::Regular,
        }
    }

    /// Names differ; their numbers nearly always do.
    pub fn number(&self) -> u64 {
        let text = format!("{self:?}");
        text.bytes().fold(1 << 33, |number: u64, byte| {
            number.wrapping_mul(31).wrapping_add(u64::from(byte)) & 0xff_ffff_ffff
        })
    }

    pub fn lookup(&self, name: &[u8]) -> Result<Node> {
        let name = core::str::from_utf8(name).map_err(|_| ENOENT)?;
        match self {
            Node::Root => {
                let all = super::list()?;
                let found = all.into_iter().find(|interface| interface.name == name);
                Ok(Node::Interface(found.ok_or(ENOENT)?.name))
            }
            Node::Interface(interface) if name == STATISTICS => {
                Ok(Node::Statistics(interface.clone()))
            }
            Node::Interface(interface) => {
                let found = FILES.iter().find(|file| **file == name);
                Ok(Node::File(interface.clone(), found.ok_or(ENOENT)?))
            }
            Node::Statistics(interface) => {
                let found = COUNTERS.iter().find(|(file, _)| *file == name);
                Ok(Node::Counter(interface.clone(), found.ok_or(ENOENT)?.0))
            }
            Node::File(..) | Node::Counter(..) => Err(crate::errno::ENOTDIR),
        }
    }

    /// Names and types of what is in a directory.
    pub fn children(&self) -> Result<Vec<(String, FileType)>> {
        Ok(match self {
            Node::Root => {
                let all = super::list()?.into_iter();
                all.map(|interface| (interface.name, FileType::Directory))
                    .collect()
            }
            Node::Interface(_) => {
                let files = FILES
                    .iter()
                    .map(|file| (file.to_string(), FileType::Regular));
                let statistics = (STATISTICS.to_string(), FileType::Directory);
                files.chain([statistics]).collect()
            }
            Node::Statistics(_) => {
                let names = COUNTERS.iter();
                names
                    .map(|(name, _)| (name.to_string(), FileType::Regular))
                    .collect()
            }
            Node::File(..) | Node::Counter(..) => return Err(crate::errno::ENOTDIR),
        })
    }

    pub fn text(&self) -> Result<Vec<u8>> {
        let of = |name: &str| {
            let all = super::list()?;
            let found = all.into_iter().find(|interface| interface.name == name);
            found.ok_or(crate::errno::ENODEV)
        };
        let mut text = match self {
            Node::File(name, file) => content(&of(name)?, file)?,
            Node::Counter(name, file) => {
                let interface = of(name)?;
                let found = COUNTERS.iter().find(|(known, _)| known == file);
                let (_, at) = found.ok_or(ENOENT)?;
                interface.counter(*at).to_string()
            }
            _ => return Err(crate::errno::EISDIR),
        };
        text.push('\n');
        Ok(text.into_bytes())
    }
}

fn hardware(bytes: &[u8]) -> String {
    let all: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    all.join(":")
}

fn content(interface: &Interface, file: &str) -> Result<String> {
    const IFF_UP: u32 = 1;
    let entry = &interface.entry;
    let number = |kind: u16| entry.number(kind).unwrap_or(0);
    let is_up = interface.flags & IFF_UP != 0;
    let state = entry.byte(16);
    Ok(match file {
        "addr_len" => interface.address.len().to_string(),
        "address" => hardware(&interface.address),
        "broadcast" => hardware(&interface.broadcast),
        // Of an interface that is down nothing can be read.
        "carrier" | "speed" if !is_up => return Err(EINVAL),
        "carrier" => entry.byte(33).to_string(),
        // Nothing is told of the cable.
        "speed" => "-1".into(),
        "duplex" if !is_up => return Err(EINVAL),
        "duplex" => "unknown".into(),
        "carrier_changes" => number(35).to_string(),
        "carrier_up_count" => number(47).to_string(),
        "carrier_down_count" => number(48).to_string(),
        "dormant" => u32::from(state == 5).to_string(),
        "testing" => u32::from(state == 4).to_string(),
        "operstate" => match state {
            1 => "notpresent",
            2 => "down",
            3 => "lowerlayerdown",
            4 => "testing",
            5 => "dormant",
            6 => "up",
            _ => "unknown",
        }
        .into(),
        // What the kernel computes itself (IFF_RUNNING, IFF_LOWER_UP, IFF_DORMANT) is not in the
        // device's own flags.
        "flags" => format!("{:#x}", interface.flags & !0x3_0040),
        "ifalias" => entry.text(20),
        "ifindex" => interface.index.to_string(),
        "iflink" => entry.number(5).unwrap_or(interface.index).to_string(),
        "link_mode" => entry.byte(17).to_string(),
        "mtu" => interface.mtu.to_string(),
        "netdev_group" => number(27).to_string(),
        "proto_down" => entry.byte(39).to_string(),
        "tx_queue_len" => interface.queue_len.to_string(),
        "type" => interface.hardware.to_string(),
        "dev_id" => "0x0".into(),
        "addr_assign_type" | "dev_port" => "0".into(),
        "name_assign_type" => "4".into(),
        "uevent" => format!("INTERFACE={}\nIFINDEX={}", interface.name, interface.index),
        _ => return Err(ENOENT),
    })
}
