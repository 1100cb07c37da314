//! What a session does for the client shim: memory to map, exported buffers to fetch, buffers to be adopted.

use std::os::fd::OwnedFd;

use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Move, Outcome};

use super::Session;

impl Session {
    /// mmap on the node, with `prot` (`PROT_*`) and `flags` (`MAP_*`): the file to map instead, and from where.
    ///
    /// # Errors
    /// What mmap on the real node says.
    pub fn map_for_shim(
        &self,
        _offset: u64,
        _length: u64,
        _prot: u32,
        _flags: u32,
    ) -> Result<(OwnedFd, u64), Errno> {
        Err(Errno::EINVAL)
    }

    /// What EXPBUF has left under `ticket`, once; and whether it is to be close-on-exec.
    ///
    /// # Errors
    /// `ENOENT`: nothing.
    pub fn fetch_for_shim(&self, _ticket: u32) -> Result<(OwnedFd, bool), Errno> {
        Err(Errno::ENOENT)
    }

    /// What process `pid` is to move before its QBUF, with the dma-buf of an adoption.
    pub fn next_move(&self, _pid: i32) -> Option<(Move, Option<OwnedFd>)> {
        None
    }

    /// What came of a move of process `pid`.
    pub fn moved(&self, _pid: i32, _client_addr: u64, _length: u64, _outcome: Outcome) {}

    /// Is what process `pid` has at `client_addr` one of the buffers of this session?
    pub fn is_lent(&self, _pid: i32, _client_addr: u64, _length: u64) -> bool {
        false
    }
}
