//! NETLINK_ROUTE: interfaces, addresses, routes, neighbours, rules. They can be asked for; nothing
//! can be changed.

use alloc::vec::Vec;

use super::{Answer, NLM_F_DUMP, Request};
use crate::Result;
use crate::errno::{EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM};
use crate::net::interfaces::check::{What, text_of};
use crate::net::interfaces::message::{attributes, u32_at};
use crate::net::interfaces::{Entry, entries, route_to};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;
/// Above it there are no types.
const RTM_MAX: u16 = 123;
const IFLA_IFNAME: u16 = 3;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const AF_BRIDGE: u8 = 7;
/// In rtm_flags: routes that were learned on the way, of which Linux has none of its own any more.
const RTM_F_CLONED: u32 = 0x200;

pub fn answer(request: &Request<'_>) -> Result<Answer> {
    let kind = request.header.kind;
    if kind > RTM_MAX {
        return Err(EOPNOTSUPP);
    }
    // Of each four types the third is the question (rtnetlink(7)).
    if kind & 3 != 2 {
        return Err(EPERM.because("the host's network cannot be changed from a container"));
    }
    let what = match kind {
        RTM_GETLINK => What::Link,
        RTM_GETADDR => What::Address,
        RTM_GETROUTE => What::Route,
        RTM_GETNEIGH => What::Neighbour,
        RTM_GETRULE => What::Rule,
        _ => return Err(EOPNOTSUPP),
    };
    let of = request.body.first().copied().ok_or(EINVAL)?;
    if request.header.flags & NLM_F_DUMP != 0 {
        return list(request, what, of);
    }
    let entry = match what {
        What::Link => link(request.body)?,
        What::Route => route_to(request.body)?,
        What::Neighbour => neighbour(request.body)?,
        _ => return Err(EOPNOTSUPP),
    };
    Ok(Answer::One(what.kind(), entry.body))
}

fn list(request: &Request<'_>, what: What, of: u8) -> Result<Answer> {
    let is_wanted = |entry: &Entry| -> bool {
        if what == What::Link {
            return of != AF_BRIDGE;
        }
        let fits = of == 0 || u16::from(of) == entry.family();
        fits && (!request.is_strict || passes(request.body, entry))
    };
    if what == What::Route && u32_at(request.body, 8).is_some_and(|flags| flags & RTM_F_CLONED != 0)
    {
        return Ok(Answer::List(Vec::new()));
    }
    let all = entries(what)?.into_iter().filter(is_wanted);
    Ok(Answer::List(
        all.map(|entry| (what.kind(), entry.body)).collect(),
    ))
}

/// What a strict request (NETLINK_GET_STRICT_CHK) names beside the family.
fn passes(asked: &[u8], entry: &Entry) -> bool {
    const RTA_OIF: u16 = 4;
    const RTA_TABLE: u16 = 15;
    const NDA_IFINDEX: u16 = 8;
    let header = entry.what.header();
    let attribute = |kind: u16| {
        attributes(asked.get(header..).unwrap_or_default())
            .find(|(found, _)| *found == kind)
            .and_then(|(_, value)| u32_at(value, 0))
    };
    let same =
        |wanted: Option<u32>, is: u32| wanted.is_none_or(|wanted| wanted == 0 || wanted == is);
    let byte = |at: usize| asked.get(at).map(|byte| u32::from(*byte));
    match entry.what {
        What::Address => same(u32_at(asked, 4), entry.index()),
        What::Route => {
            same(attribute(RTA_TABLE).or(byte(4)), entry.table())
                && same(attribute(RTA_OIF), entry.output())
                && same(byte(5), u32::from(entry.body[5]))
                && same(byte(7), u32::from(entry.body[7]))
        }
        What::Neighbour => same(attribute(NDA_IFINDEX), entry.index()),
        What::Link | What::Rule => true,
    }
}

/// The neighbour of an address at an interface.
fn neighbour(asked: &[u8]) -> Result<Entry> {
    const NDA_DST: u16 = 1;
    let header = What::Neighbour.header();
    let index = u32_at(asked, 4).filter(|index| *index != 0).ok_or(EINVAL)?;
    let address = attributes(asked.get(header..).unwrap_or_default())
        .find(|(kind, _)| *kind == NDA_DST)
        .map(|(_, value)| value)
        .ok_or(EINVAL.because("no address"))?;
    let is_it = |entry: &Entry| entry.index() == index && entry.get(NDA_DST) == Some(address);
    let mut all = entries(What::Neighbour)?.into_iter();
    all.find(is_it).ok_or(ENOENT)
}

/// The interface that a request names by its index or one of its names.
fn link(asked: &[u8]) -> Result<Entry> {
    let header = What::Link.header();
    let index = u32_at(asked, 4).ok_or(EINVAL)?;
    let name = attributes(asked.get(header..).unwrap_or_default())
        .find(|(kind, _)| matches!(*kind, IFLA_IFNAME | IFLA_ALT_IFNAME))
        .map(|(_, value)| text_of(value));
    let is_it = |entry: &Entry| match name {
        _ if index != 0 => entry.index() == index,
        Some(name) => names(entry).any(|other| other == name),
        None => false,
    };
    if index == 0 && name.is_none() {
        return Err(EINVAL);
    }
    entries(What::Link)?.into_iter().find(is_it).ok_or(ENODEV)
}

fn names(entry: &Entry) -> impl Iterator<Item = &[u8]> {
    let own = entry.get(IFLA_IFNAME);
    let more = attributes(entry.get(IFLA_PROP_LIST).unwrap_or_default());
    own.into_iter()
        .chain(more.map(|(_, value)| value))
        .map(text_of)
}
