//! A dma-buf that a device may import, and what its own fdinfo says of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Look;
use crate::sys::{field, own_fdinfo};

/// A dma-buf that the policy lets the device import.
#[derive(Clone, Debug)]
pub struct Importable {
    /// Ours, and the object stays alive with it.
    pub fd: Arc<OwnedFd>,
    /// `exp_name` of its fdinfo: who made it.
    pub exporter: String,
    /// `st_ino`: names it as long as it lives.
    pub inode: u64,
    /// bytes
    pub size: u64,
    /// Where in it the first byte of the stretch lies. A driver can only begin at 0.
    pub offset: u64,
}

impl Importable {
    /// `dma_buf`, of which the stretch begins at byte `offset`, if the policy lets it be imported.
    ///
    /// # Errors
    /// Why not, for people.
    pub(super) fn of(look: &Look<'_>, dma_buf: Arc<OwnedFd>, offset: u64) -> Result<Self, String> {
        let (exporter, size) = exporter_of(&*dma_buf).ok_or("nothing is known of its dma-buf")?;
        look.may_import(&exporter)?;
        Ok(Self {
            inode: rustix::fs::fstat(&*dma_buf)
                .map_err(|errno| errno.to_string())?
                .st_ino,
            fd: dma_buf,
            exporter,
            size,
            offset,
        })
    }
}

/// Who has made this dma-buf (`exp_name` of its fdinfo, dma-buf.c), and how many bytes it has.
pub(super) fn exporter_of(dma_buf: impl AsFd) -> Option<(String, u64)> {
    let exporter = field(&own_fdinfo(&dma_buf).ok()?, "exp_name")?.to_owned();
    let size = rustix::fs::seek(dma_buf, rustix::fs::SeekFrom::End(0)).ok()?;
    Some((exporter, size))
}
