//! `PROCMAP_QUERY` (linux/fs.h, Linux 6.11): one VMA of a process, asked by address.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// A mapping of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `w`
    pub writable: bool,
}

const WRITABLE: u64 = 2;

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

nix::ioctl_readwrite!(procmap_query, b'f', 17, ProcmapQuery);

/// The VMA of `maps` (an open `/proc/PID/maps`) that covers `client_addr`, or `None` where there is none.
///
/// # Errors
/// `ENOTTY` on kernels before 6.11, `ESRCH` when the memory is gone (the process has ended or called exec).
pub fn query_vma(maps: impl AsFd, client_addr: u64) -> Result<Option<Vma>, Errno> {
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_addr: client_addr,
        ..ProcmapQuery::default()
    };
    // SAFETY: the struct is the kernel's of 104 bytes, alive for the call; both buffer addresses in it are 0 with
    // size 0, so the kernel writes nothing else.
    match unsafe { procmap_query(maps.as_fd().as_raw_fd(), &raw mut query) } {
        Ok(_) => Ok(Some(Vma {
            start: query.vma_start,
            end: query.vma_end,
            writable: query.vma_flags & WRITABLE != 0,
        })),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

const _: () = assert!(size_of::<ProcmapQuery>() == 104);
