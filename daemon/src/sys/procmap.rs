//! `PROCMAP_QUERY` (linux/fs.h, Linux 6.11): one VMA of a process, asked by address.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// A mapping of another process, as `/proc/PID/maps` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `r`
    pub readable: bool,
    /// `w`
    pub writable: bool,
    /// `s`: what is written to it others see.
    pub shared: bool,
    /// `vm_pgoff` in bytes. What it means only the driver that was mapped knows.
    pub offset: u64,
    /// Of the mapped file's file system: major, minor. 0, 0 without a file.
    pub device: (u32, u32),
    /// Of the mapped file; 0 without one.
    pub inode: u64,
    /// Path, with ` (deleted)` as the kernel writes it, or a name such as `[heap]`; empty without one. Cut where it is
    /// longer than a path may be.
    pub name: Vec<u8>,
}

impl Vma {
    /// `st_dev` of the mapped file, as fstat tells it.
    #[must_use]
    pub fn st_dev(&self) -> u64 {
        nix::sys::stat::makedev(u64::from(self.device.0), u64::from(self.device.1))
    }

    /// Is it in all that counts the same mapping? The name does not: a file can be renamed.
    #[must_use]
    pub fn is_still(&self, now: &Self) -> bool {
        let of = |vma: &Self| {
            (
                (vma.start, vma.end, vma.offset),
                (vma.readable, vma.writable, vma.shared),
                (vma.device, vma.inode),
            )
        };
        of(self) == of(now)
    }
}

const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const SHARED: u64 = 8;

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
    match query(&maps, client_addr, &mut [0; 256]) {
        // PATH_MAX, and what the kernel asks for at most.
        Err(Errno::ENAMETOOLONG) => query(&maps, client_addr, &mut [0; 4096]),
        answer => answer,
    }
}

/// The same without the name, which is left empty: where a file lies the kernel finds out with some effort.
///
/// # Errors
/// As [`query_vma`].
pub fn query_vma_unnamed(maps: impl AsFd, client_addr: u64) -> Result<Option<Vma>, Errno> {
    query(&maps, client_addr, &mut [])
}

fn query(maps: &impl AsFd, client_addr: u64, name: &mut [u8]) -> Result<Option<Vma>, Errno> {
    // The kernel wants both or none.
    let name_addr = match name.is_empty() {
        true => 0,
        false => name.as_mut_ptr().expose_provenance() as u64,
    };
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_addr: client_addr,
        vma_name_size: u32::try_from(name.len()).map_err(|_| Errno::EINVAL)?,
        vma_name_addr: name_addr,
        ..ProcmapQuery::default()
    };
    // SAFETY: the struct is the kernel's of 104 bytes, alive for the call; the kernel writes at most `vma_name_size`
    // bytes to `vma_name_addr`, which is `name`, as long and as alive; the other buffer's size is 0.
    match unsafe { procmap_query(maps.as_fd().as_raw_fd(), &raw mut query) } {
        Ok(_) => {
            // What the kernel has counted includes the NUL.
            let len = usize::try_from(query.vma_name_size).unwrap_or(0).min(name.len());
            Ok(Some(Vma {
                start: query.vma_start,
                end: query.vma_end,
                readable: query.vma_flags & READABLE != 0,
                writable: query.vma_flags & WRITABLE != 0,
                shared: query.vma_flags & SHARED != 0,
                offset: query.vma_offset,
                device: (query.dev_major, query.dev_minor),
                inode: query.inode,
                name: name[..len]
                    .split(|byte| *byte == 0)
                    .next()
                    .unwrap_or_default()
                    .to_vec(),
            }))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

const _: () = assert!(size_of::<ProcmapQuery>() == 104);
