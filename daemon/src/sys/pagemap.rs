//! Which page frames stand behind addresses: `/proc/PID/pagemap` and `/proc/kpageflags`
//! (Documentation/admin-guide/mm/pagemap.rst). Both tell numbers of frames only to CAP_SYS_ADMIN.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::page_size;

/// Bit 63 of an entry: the page is there.
const PRESENT: u64 = 1 << 63;

/// Bits 0 to 54 are the frame.
const FRAME: u64 = (1 << 55) - 1;

/// The frame behind `addr` of the address space whose open `/proc/PID/pagemap` this is. `None` where no page is mapped,
/// where it is memory without pages (`VM_PFNMAP`, which is passed over, mm/pagewalk.c), and where we may not know.
#[must_use]
pub fn frame_of(pagemap: &File, addr: u64) -> Option<u64> {
    let mut entry = [0; 8];
    let at = addr / u64::try_from(page_size().ok()?).ok()? * 8;
    pagemap.read_exact_at(&mut entry, at).ok()?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & FRAME;
    (entry & PRESENT != 0 && frame != 0).then_some(frame)
}

/// `KPF_SWAPBACKED` (linux/kernel-page-flags.h): the page can be swapped out, so it is anonymous memory or shmem, and
/// not of the kernel's own.
const SWAPBACKED: u64 = 1 << 14;

/// Is this frame a page of shmem (or anonymous memory), rather than memory that the kernel has allocated for itself
/// (`vmalloc`)?
///
/// # Errors
/// `EPERM`, `ENOENT`: what open and read say of `/proc/kpageflags`.
pub fn is_swap_backed(frame: u64) -> io::Result<bool> {
    let mut flags = [0; 8];
    File::open("/proc/kpageflags")?.read_exact_at(&mut flags, frame * 8)?;
    Ok(u64::from_ne_bytes(flags) & SWAPBACKED != 0)
}

#[cfg(test)]
mod tests {
    use super::frame_of;

    #[test]
    fn no_page_is_at_address_0_and_nothing_can_be_read_behind_the_end() {
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("our own");
        assert_eq!(frame_of(&pagemap, 0), None);
        assert_eq!(frame_of(&pagemap, u64::MAX), None);
    }
}
