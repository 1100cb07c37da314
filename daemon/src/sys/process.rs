//! Another process's memory and identity.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::Mapping;

/// Why bytes did not reach a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    /// The range is not, or no longer, writable there.
    #[error("its memory is gone or not writable")]
    Fault,
    /// No such process, or it is exiting.
    #[error("it has ended")]
    Gone,
    /// The daemon may not touch that process: it lacks CAP_SYS_PTRACE, or Yama forbids it.
    #[error("the daemon may not access it (CAP_SYS_PTRACE missing?)")]
    Forbidden,
}

impl From<Errno> for MemoryFault {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => MemoryFault::Gone,
            Errno::EPERM | Errno::EACCES => MemoryFault::Forbidden,
            _ => MemoryFault::Fault,
        }
    }
}

/// Copies the first `len` bytes of `source` to `client_addr` in the process (or thread) `pid`: one copy, straight
/// from the mapping (`process_vm_writev(2)`).
///
/// # Errors
/// [`MemoryFault::Fault`] also when only a part could be written, or when `len` is more than is mapped.
pub fn write_from(source: &Mapping, len: usize, pid: Pid, client_addr: u64) -> Result<(), MemoryFault> {
    let remote_base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    if len > source.size() {
        return Err(MemoryFault::Fault);
    }
    let mut done = 0;
    while done < len {
        let local = libc::iovec {
            iov_base: source.host_ptr().wrapping_byte_add(done),
            iov_len: len - done,
        };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(remote_base.wrapping_add(done)),
            iov_len: len - done,
        };
        // SAFETY: `local` lies within `source`, which stays mapped while it is borrowed and is only read; `remote`
        // is an address of another process, checked by the kernel.
        let wrote =
            unsafe { libc::process_vm_writev(pid.as_raw(), &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(wrote) {
            // The kernel copies at most 2 GiB a call, and stops at the first page it cannot write.
            Ok(0) => return Err(MemoryFault::Fault),
            Ok(count) => done += count,
            Err(_) => match Errno::last() {
                Errno::EINTR => {}
                errno => return Err(errno.into()),
            },
        }
    }
    Ok(())
}

/// Reads the byte at `client_addr` in process (or thread) `pid`: can the kernel reach that page for us at all?
/// Device memory (`VM_IO`, `VM_PFNMAP`) is mapped but not reachable.
///
/// # Errors
/// As [`write_from`].
pub fn read_byte(pid: Pid, client_addr: u64) -> Result<u8, MemoryFault> {
    let base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    let mut byte = [0];
    let remote = nix::sys::uio::RemoteIoVec { base, len: 1 };
    nix::sys::uio::process_vm_readv(pid, &mut [io::IoSliceMut::new(&mut byte)], &[remote])?;
    Ok(byte[0])
}

/// `pidfd_open(tid, PIDFD_THREAD)`: needs Linux 6.9.
///
/// # Errors
/// `EINVAL` on an older kernel, `ESRCH` when the thread is gone.
pub fn pidfd_open_thread(tid: Pid) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    // SAFETY: the call takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid.as_raw(), PIDFD_THREAD) };
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::{MemoryFault, read_byte, write_from};
    use crate::sys::Mapping;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::Pid;
    use std::io::Write;

    fn mapped(bytes: &[u8]) -> Mapping {
        let mut file = std::fs::File::from(memfd_create(c"test", MFdFlags::empty()).expect("a memfd"));
        file.write_all(bytes).expect("room in memory");
        Mapping::readable(&file, 0, bytes.len()).expect("a mapping")
    }

    #[test]
    fn bytes_arrive_at_an_unaligned_address_and_nothing_beside_them_changes() {
        let source = mapped(&[7; 10_000]);
        let target = vec![1u8; 12_000];
        let addr = u64::try_from(target.as_ptr().addr()).expect("64 bits") + 3;
        write_from(&source, 9_000, Pid::this(), addr).expect("our own memory");
        // `target` was changed behind the compiler's back: read it the same way.
        let at = |i: u64| read_byte(Pid::this(), addr - 3 + i).expect("our own memory");
        assert_eq!((at(2), at(3), at(9_002), at(9_003)), (1, 7, 7, 1));
    }

    #[test]
    fn an_unmapped_address_and_a_missing_process_are_told_apart() {
        let source = mapped(&[7; 100]);
        assert_eq!(write_from(&source, 100, Pid::this(), 8), Err(MemoryFault::Fault));
        assert_eq!(write_from(&source, 101, Pid::this(), 8), Err(MemoryFault::Fault));
        assert_eq!(
            write_from(&source, 100, Pid::from_raw(i32::MAX), 8),
            Err(MemoryFault::Gone)
        );
        assert_eq!(read_byte(Pid::this(), 8), Err(MemoryFault::Fault));
    }
}
