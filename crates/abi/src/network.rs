//! The host's network interfaces, addresses and routes, as a container sees them.
//!
//! [`HostCall::NetQuery`](crate::hostcall::HostCall::NetQuery) answers with rtnetlink messages
//! (rtnetlink(7)): whole ones, each aligned to 4 bytes, without the NLMSG_DONE at their end.

/// What is asked for.
pub mod query {
    /// Interfaces: RTM_NEWLINK.
    pub const LINKS: u64 = 0;
    /// Addresses: RTM_NEWADDR.
    pub const ADDRESSES: u64 = 1;
    /// Routes of every table: RTM_NEWROUTE.
    pub const ROUTES: u64 = 2;
    /// Neighbours: RTM_NEWNEIGH.
    pub const NEIGHBOURS: u64 = 3;
    /// Rules: RTM_NEWRULE.
    pub const RULES: u64 = 4;
    /// The one route to an address: the buffer holds a `struct rtmsg` and its attributes.
    pub const ROUTE_TO: u64 = 5;
}

/// Longest request of [`query::ROUTE_TO`] in bytes: a header and a handful of attributes.
pub const REQUEST_MAX: u64 = 256;
