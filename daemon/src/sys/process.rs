//! Another process's memory and identity.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
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

/// Copies `len` bytes of `source`, from its byte `from` on, to `client_addr` in the process (or thread) `pid`: one copy,
/// straight from the mapping (`process_vm_writev(2)`).
///
/// # Errors
/// [`MemoryFault::Fault`] also when only a part could be written, when `len` is more than is mapped, and for our own
/// process, whose memory is Rust's.
pub fn write_from(
    source: &Mapping,
    from: usize,
    len: usize,
    pid: Pid,
    client_addr: u64,
) -> Result<(), MemoryFault> {
    let remote_base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    if !source.has(from, len) || is_ours(pid) {
        return Err(MemoryFault::Fault);
    }
    in_pieces(len, MemoryFault::Fault, |done| {
        let (local, remote) = iovecs(source, from, remote_base, done, len);
        // SAFETY: `local` lies within `source`, which stays mapped while it is borrowed and is only read; `remote`
        // is an address of another process, checked by the kernel.
        Ok(unsafe { libc::process_vm_writev(pid.as_raw(), &raw const local, 1, &raw const remote, 1, 0) })
    })
}

/// Copies `len` bytes from `client_addr` in the process (or thread) `pid` to `target`, from its byte `to` on: one copy,
/// straight into the mapping (`process_vm_readv(2)`).
///
/// # Errors
/// As [`write_from`]; a part may have been copied. [`MemoryFault::Fault`] also for a mapping that is not writable.
pub fn read_into(
    target: &Mapping,
    to: usize,
    len: usize,
    pid: Pid,
    client_addr: u64,
) -> Result<(), MemoryFault> {
    let remote_base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    if !target.has(to, len) || !target.is_writable() || is_ours(pid) {
        return Err(MemoryFault::Fault);
    }
    in_pieces(len, MemoryFault::Fault, |done| {
        let (local, remote) = iovecs(target, to, remote_base, done, len);
        // SAFETY: `local` lies within `target`, which stays mapped while it is borrowed, was mapped writable, and of
        // whose bytes no Rust reference exists; `remote` is an address of another process, checked by the kernel.
        Ok(unsafe { libc::process_vm_readv(pid.as_raw(), &raw const local, 1, &raw const remote, 1, 0) })
    })
}

/// What is left of `len` bytes after `done`: in `mapping` from `start` on, and in another process from `remote_base` on.
fn iovecs(
    mapping: &Mapping,
    start: usize,
    remote_base: usize,
    done: usize,
    len: usize,
) -> (libc::iovec, libc::iovec) {
    let local = libc::iovec {
        iov_base: mapping
            .host_ptr()
            .wrapping_byte_add(start)
            .wrapping_byte_add(done),
        iov_len: len - done,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(remote_base.wrapping_add(done)),
        iov_len: len - done,
    };
    (local, remote)
}

/// Makes the system call `copy`, which is told how many bytes are done, until `len` bytes are: the kernel copies at most
/// 2 GiB a call and stops at the first page that it cannot reach. `nothing` is what it means when it copies none.
fn in_pieces(
    len: usize,
    nothing: MemoryFault,
    mut copy: impl FnMut(usize) -> Result<isize, MemoryFault>,
) -> Result<(), MemoryFault> {
    let mut done = 0;
    while done < len {
        match usize::try_from(copy(done)?) {
            Ok(0) => return Err(nothing),
            Ok(count) => done += count,
            Err(_) => match Errno::last() {
                Errno::EINTR => {}
                errno => return Err(errno.into()),
            },
        }
    }
    Ok(())
}

/// Is `tid` a thread of this process? Signal 0 asks and sends nothing.
fn is_ours(tid: Pid) -> bool {
    // SAFETY: the call takes three numbers and touches no memory.
    let found = unsafe { libc::syscall(libc::SYS_tgkill, Pid::this().as_raw(), tid.as_raw(), 0) };
    found == 0
}

/// The address space of another process, held by its open `/proc/PID/mem`: it ends with the process or at exec, and
/// what is written goes there and nowhere else.
#[derive(Debug)]
pub struct RemoteMemory {
    file: File,
    ours: bool,
}

impl RemoteMemory {
    /// The address space of thread `tid`, as it is now.
    ///
    /// # Errors
    /// `EACCES` where we may not trace that process.
    pub fn open(tid: Pid) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{tid}/mem"))?;
        Ok(Self {
            file,
            ours: is_ours(tid),
        })
    }

    /// Does any process still use it?
    pub fn is_alive(&self) -> bool {
        // Nothing is mapped at address 0, so a live address space answers EIO and a dead one end-of-file
        // (fs/proc/base.c, mem_rw).
        !matches!(self.file.read_at(&mut [0], 0), Ok(0))
    }

    /// As [`write_from`], with two copies, whatever the process does meanwhile.
    ///
    /// # Errors
    /// As [`write_from`]; [`MemoryFault::Gone`] when the address space is gone.
    pub fn write(
        &self,
        source: &Mapping,
        from: usize,
        len: usize,
        client_addr: u64,
    ) -> Result<(), MemoryFault> {
        if !source.has(from, len) || self.ours {
            return Err(MemoryFault::Fault);
        }
        in_pieces(len, MemoryFault::Gone, |done| {
            let from = source.host_ptr().wrapping_byte_add(from).wrapping_byte_add(done);
            let at = file_offset(client_addr, done)?;
            // SAFETY: `from` and the length lie within `source`, which stays mapped while it is borrowed; the kernel
            // only reads it, and writes to an address space that is not this process's.
            Ok(unsafe { libc::pwrite(self.file.as_raw_fd(), from, len - done, at) })
        })
    }

    /// As [`read_into`], with two copies, whatever the process does meanwhile.
    ///
    /// # Errors
    /// As [`RemoteMemory::write`], and as [`read_into`].
    pub fn read(&self, target: &Mapping, to: usize, len: usize, client_addr: u64) -> Result<(), MemoryFault> {
        if !target.has(to, len) || !target.is_writable() || self.ours {
            return Err(MemoryFault::Fault);
        }
        in_pieces(len, MemoryFault::Gone, |done| {
            let to = target.host_ptr().wrapping_byte_add(to).wrapping_byte_add(done);
            let at = file_offset(client_addr, done)?;
            // SAFETY: `to` and the length lie within `target`, which stays mapped while it is borrowed, was mapped
            // writable, and of whose bytes no Rust reference exists.
            Ok(unsafe { libc::pread(self.file.as_raw_fd(), to, len - done, at) })
        })
    }
}

/// Where in `/proc/PID/mem` the byte is that lies `done` bytes behind `client_addr`.
fn file_offset(client_addr: u64, done: usize) -> Result<libc::off_t, MemoryFault> {
    let at = client_addr.checked_add(done as u64);
    at.and_then(|at| libc::off_t::try_from(at).ok())
        .ok_or(MemoryFault::Fault)
}

/// Reads the byte at `client_addr` in process (or thread) `pid`: can the kernel reach that page for us at all?
/// Device memory (`VM_IO`, `VM_PFNMAP`) is mapped but not reachable.
///
/// # Errors
/// As [`write_from`].
pub fn read_byte(pid: Pid, client_addr: u64) -> Result<u8, MemoryFault> {
    let base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    let mut byte = [0];
    let remote = RemoteIoVec { base, len: 1 };
    process_vm_readv(pid, &mut [io::IoSliceMut::new(&mut byte)], &[remote])?;
    Ok(byte[0])
}

/// Fills `bytes` from `client_addr` in process (or thread) `pid`.
///
/// # Errors
/// As [`write_from`]; `bytes` may have been filled in part.
pub fn read_bytes(pid: Pid, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault> {
    let base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        let remote = RemoteIoVec {
            base: base.checked_add(done).ok_or(MemoryFault::Fault)?,
            len: rest.len(),
        };
        match process_vm_readv(pid, &mut [io::IoSliceMut::new(rest)], &[remote])? {
            0 => return Err(MemoryFault::Fault),
            count => done += count,
        }
    }
    Ok(())
}

/// Writes `bytes` to `client_addr` in process (or thread) `pid`.
///
/// # Errors
/// As [`write_from`].
pub fn write_bytes(pid: Pid, client_addr: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
    let base = usize::try_from(client_addr).map_err(|_| MemoryFault::Fault)?;
    if is_ours(pid) {
        return Err(MemoryFault::Fault);
    }
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let remote = RemoteIoVec {
            base: base.checked_add(done).ok_or(MemoryFault::Fault)?,
            len: rest.len(),
        };
        match process_vm_writev(pid, &[io::IoSlice::new(rest)], &[remote])? {
            0 => return Err(MemoryFault::Fault),
            count => done += count,
        }
    }
    Ok(())
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
    use super::{MemoryFault, RemoteMemory, read_byte, read_bytes, read_into, write_bytes, write_from};
    use crate::sys::{CpuUse, Mapping};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::Pid;
    use std::fs::File;
    use std::io::Write;
    use std::process::{Child, Command};

    fn mapped(bytes: &[u8]) -> Mapping {
        let mut file = File::from(memfd_create(c"test", MFdFlags::empty()).expect("a memfd"));
        file.write_all(bytes).expect("room in memory");
        Mapping::shared(&file, 0, bytes.len(), CpuUse::Read).expect("a mapping")
    }

    /// Another process, and the start of its stack, which nobody reads while it sleeps.
    struct Sleeper(Child, u64);

    impl Sleeper {
        fn new() -> Self {
            let mut sleeper = Self(Command::new("sleep").arg("60").spawn().expect("sleep(1)"), 0);
            let read =
                |name: &str, pid| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("our child");
            // Until it has called exec its memory is a copy of ours.
            while read("comm", sleeper.0.id()).trim() != "sleep"
                || !read("maps", sleeper.0.id()).contains("[stack]")
            {
                std::thread::yield_now();
            }
            let maps = read("maps", sleeper.0.id());
            let stack = maps
                .lines()
                .find(|line| line.ends_with("[stack]"))
                .expect("a stack");
            let start = stack.split('-').next().expect("a range");
            sleeper.1 = u64::from_str_radix(start, 16).expect("an address");
            sleeper
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().cast_signed())
        }

        fn bytes(&self, offsets: [u64; 4]) -> [u8; 4] {
            offsets.map(|offset| read_byte(self.pid(), self.1 + offset).expect("its stack"))
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().expect("our child");
            self.0.wait().expect("our child");
        }
    }

    #[test]
    fn bytes_arrive_at_an_unaligned_address_and_nothing_beside_them_changes() {
        let sleeper = Sleeper::new();
        let source = mapped(&[7; 5_000]);
        write_from(&source, 0, 4_500, sleeper.pid(), sleeper.1 + 3).expect("its stack");
        assert_eq!(sleeper.bytes([2, 3, 4_502, 4_503]), [0, 7, 7, 0]);
    }

    #[test]
    fn bytes_arrive_through_an_open_address_space_too() {
        let sleeper = Sleeper::new();
        let source = mapped(&[9; 5_000]);
        let mem = RemoteMemory::open(sleeper.pid()).expect("our child");
        assert!(mem.is_alive());
        mem.write(&source, 0, 4_500, sleeper.1 + 3).expect("its stack");
        assert_eq!(sleeper.bytes([2, 3, 4_502, 4_503]), [0, 9, 9, 0]);
        drop(sleeper);
        assert!(!mem.is_alive());
        assert_eq!(mem.write(&source, 0, 10, 4096), Err(MemoryFault::Gone));
    }

    #[test]
    fn bytes_come_from_an_unaligned_address_by_both_ways_and_only_into_what_is_writable() {
        let sleeper = Sleeper::new();
        let source = mapped(&[5; 3_000]);
        write_from(&source, 0, 3_000, sleeper.pid(), sleeper.1 + 7).expect("its stack");
        assert_eq!(
            read_into(&source, 0, 10, sleeper.pid(), sleeper.1),
            Err(MemoryFault::Fault)
        );
        let file = File::from(memfd_create(c"test", MFdFlags::empty()).expect("a memfd"));
        file.set_len(4_000).expect("room in memory");
        let target = Mapping::shared(&file, 0, 4_000, CpuUse::Write).expect("a mapping");
        let bytes = |len: usize| {
            let mut bytes = vec![0; len];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("its bytes");
            bytes
        };
        read_into(&target, 0, 3_001, sleeper.pid(), sleeper.1 + 7).expect("its stack");
        assert_eq!(bytes(3_000), vec![5; 3_000]);
        assert_eq!(bytes(3_001)[3_000], 0);
        file.set_len(0)
            .and_then(|()| file.set_len(4_000))
            .expect("zeroes");
        let mem = RemoteMemory::open(sleeper.pid()).expect("our child");
        mem.read(&target, 0, 3_001, sleeper.1 + 7).expect("its stack");
        assert_eq!(bytes(3_000), vec![5; 3_000]);
        assert_eq!(
            read_into(&target, 0, 10, sleeper.pid(), 8),
            Err(MemoryFault::Fault)
        );
        assert_eq!(
            read_into(&target, 0, 4_001, sleeper.pid(), sleeper.1),
            Err(MemoryFault::Fault)
        );
    }

    #[test]
    fn small_structs_go_both_ways_and_never_in_part() {
        let sleeper = Sleeper::new();
        write_bytes(sleeper.pid(), sleeper.1 + 5, b"struct").expect("its stack");
        let mut back = [0; 6];
        read_bytes(sleeper.pid(), sleeper.1 + 5, &mut back).expect("its stack");
        assert_eq!(&back, b"struct");
        assert_eq!(read_bytes(sleeper.pid(), 8, &mut back), Err(MemoryFault::Fault));
        assert_eq!(
            write_bytes(sleeper.pid(), u64::MAX, &back),
            Err(MemoryFault::Fault)
        );
        assert_eq!(
            write_bytes(Pid::this(), sleeper.1, &back),
            Err(MemoryFault::Fault)
        );
    }

    #[test]
    fn an_unmapped_address_a_missing_process_and_our_own_memory_are_refused() {
        let sleeper = Sleeper::new();
        let source = mapped(&[7; 100]);
        assert_eq!(
            write_from(&source, 0, 100, sleeper.pid(), 8),
            Err(MemoryFault::Fault)
        );
        assert_eq!(
            write_from(&source, 0, 101, sleeper.pid(), sleeper.1),
            Err(MemoryFault::Fault)
        );
        assert_eq!(
            write_from(&source, 0, 100, Pid::from_raw(i32::MAX), 8),
            Err(MemoryFault::Gone)
        );
        assert_eq!(read_byte(sleeper.pid(), 8), Err(MemoryFault::Fault));
        let target = [1u8; 100];
        let addr = u64::try_from(target.as_ptr().addr()).expect("64 bits");
        assert_eq!(
            write_from(&source, 0, 100, Pid::this(), addr),
            Err(MemoryFault::Fault)
        );
        let mem = RemoteMemory::open(Pid::this()).expect("ourselves");
        assert_eq!(mem.write(&source, 0, 100, addr), Err(MemoryFault::Fault));
    }
}
