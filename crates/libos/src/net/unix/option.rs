//! Options and ioctls of UNIX sockets.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{BUFFER_SIZE, UnixSocket};
use crate::Result;
use crate::errno::{ECONNRESET, EINVAL, ENOPROTOOPT, ENOTTY, EOPNOTSUPP};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_ERROR: i32 = 4;
const SO_DONTROUTE: i32 = 5;
const SO_BROADCAST: i32 = 6;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_KEEPALIVE: i32 = 9;
const SO_OOBINLINE: i32 = 10;
const SO_PRIORITY: i32 = 12;
const SO_LINGER: i32 = 13;
const SO_REUSEPORT: i32 = 15;
const SO_PASSCRED: i32 = 16;
const SO_PEERCRED: i32 = 17;
const SO_RCVLOWAT: i32 = 18;
const SO_SNDLOWAT: i32 = 19;
const SO_TIMESTAMP: i32 = 29;
const SO_ACCEPTCONN: i32 = 30;
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
const SO_PEEK_OFF: i32 = 42;
const FIONREAD: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;
const SIOCATMARK: u32 = 0x8905;

/// Largest SO_SNDBUF (net.core.wmem_max, doubled as Linux does).
const SEND_BUFFER_MAX: usize = 2 * BUFFER_SIZE;
/// Smallest (SOCK_MIN_SNDBUF).
const SEND_BUFFER_MIN: usize = 4608;
/// Smallest SO_RCVBUF (SOCK_MIN_RCVBUF).
const RECEIVE_BUFFER_MIN: usize = 2304;

fn int(value: &[u8]) -> Result<i32> {
    match value {
        [a, b, c, d, ..] => Ok(i32::from_le_bytes([*a, *b, *c, *d])),
        _ => Err(EINVAL),
    }
}

impl UnixSocket {
    pub(super) fn option(&self, level: i32, name: i32) -> Result<Vec<u8>> {
        if level != SOL_SOCKET {
            return Err(EOPNOTSUPP);
        }
        if let Some(value) = self.timeouts.get(name) {
            return Ok(value);
        }
        let int = |value: u32| Ok(value.to_le_bytes().to_vec());
        match name {
            SO_ERROR => {
                let reset = core::mem::take(&mut self.state.lock().reset);
                int(if reset { ECONNRESET.code() as u32 } else { 0 })
            }
            SO_SNDBUF => int(self.send_buffer.load(Ordering::Relaxed) as u32),
            SO_PASSCRED => int(u32::from(self.pass_credentials.load(Ordering::Relaxed))),
            SO_PEEK_OFF => int(self.state.lock().peek_offset as u32),
            SO_ACCEPTCONN => int(u32::from(self.state.lock().backlog.is_some())),
            SO_RCVLOWAT | SO_SNDLOWAT => int(1),
            SO_PEERCRED => {
                let unknown = (0, u32::MAX, u32::MAX);
                let (pid, uid, gid) = self.state.lock().peer_credentials.unwrap_or(unknown);
                let ids = [pid, uid, gid];
                Ok(ids.iter().flat_map(|id| id.to_le_bytes()).collect())
            }
            SO_TIMESTAMP => int(0),
            SO_REUSEADDR | SO_DONTROUTE | SO_BROADCAST | SO_RCVBUF | SO_KEEPALIVE
            | SO_OOBINLINE | SO_PRIORITY | SO_LINGER | SO_REUSEPORT => {
                let initial = match name {
                    SO_RCVBUF => (BUFFER_SIZE as u32).to_le_bytes().to_vec(),
                    SO_LINGER => vec![0; 8],
                    _ => vec![0; 4],
                };
                Ok(self.inert.lock().get(&name).cloned().unwrap_or(initial))
            }
            _ => Err(ENOPROTOOPT),
        }
    }

    pub(super) fn change_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        if level != SOL_SOCKET {
            return Err(EOPNOTSUPP);
        }
        if let Some(result) = self.timeouts.set(name, value) {
            return result;
        }
        match name {
            SO_PASSCRED => {
                let on = int(value)? != 0;
                self.pass_credentials.store(on, Ordering::Relaxed);
                Ok(())
            }
            SO_SNDBUF | SO_SNDBUFFORCE => {
                // Linux takes the number as unsigned.
                let wanted = (int(value)? as u32 as usize).saturating_mul(2);
                let size = wanted.clamp(SEND_BUFFER_MIN, SEND_BUFFER_MAX);
                self.send_buffer.store(size, Ordering::Relaxed);
                Ok(())
            }
            // Without effect on a UNIX socket, on Linux too: kept to be shown.
            SO_PEEK_OFF => {
                self.state.lock().peek_offset = int(value)?;
                Ok(())
            }
            SO_REUSEADDR | SO_DONTROUTE | SO_BROADCAST | SO_KEEPALIVE | SO_OOBINLINE
            | SO_REUSEPORT => {
                let on = u32::from(int(value)? != 0);
                if name == SO_OOBINLINE {
                    self.state.lock().is_urgent_inline = on != 0;
                }
                self.keep(name, on.to_le_bytes().to_vec())
            }
            SO_PRIORITY => self.keep(name, int(value)?.to_le_bytes().to_vec()),
            SO_RCVBUF | SO_RCVBUFFORCE => {
                let wanted = (int(value)? as u32 as usize).saturating_mul(2);
                let size = wanted.clamp(RECEIVE_BUFFER_MIN, SEND_BUFFER_MAX) as u32;
                self.keep(SO_RCVBUF, size.to_le_bytes().to_vec())
            }
            SO_LINGER => {
                let (on, seconds) = (int(value)?, int(value.get(4..).unwrap_or(&[]))?);
                let mut linger = u32::from(on != 0).to_le_bytes().to_vec();
                let seconds = if on != 0 { seconds } else { 0 };
                linger.extend_from_slice(&seconds.to_le_bytes());
                self.keep(name, linger)
            }
            _ => Err(ENOPROTOOPT),
        }
    }

    /// Keeps the value of an option that does nothing.
    fn keep(&self, name: i32, value: Vec<u8>) -> Result<()> {
        self.inert.lock().insert(name, value);
        Ok(())
    }

    /// FIONREAD, SIOCOUTQ, SIOCATMARK.
    pub(super) fn control(&self, request: u32, value: &mut [u8]) -> Result<usize> {
        let bytes = match request {
            FIONREAD => {
                let state = self.state.lock();
                if state.backlog.is_some() {
                    return Err(EINVAL);
                }
                if self.is_stream() {
                    state.bytes
                } else {
                    state.packets.front().map_or(0, |packet| packet.len())
                }
            }
            SIOCOUTQ => {
                let peer = self.state.lock().peer.upgrade();
                peer.map_or(0, |peer| peer.state.lock().bytes)
            }
            SIOCATMARK if self.is_stream() => usize::from(self.state.lock().is_at_mark()),
            SIOCATMARK => return Err(EOPNOTSUPP),
            _ => return Err(ENOTTY),
        };
        value[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        Ok(0)
    }
}
