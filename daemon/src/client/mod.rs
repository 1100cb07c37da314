//! A client: the process behind a request. Its identity, its memory, the flags of its file.
//!
//! Who calls is known exactly only while the call is unanswered: its thread is blocked in it, so it can neither end
//! nor exec (an exec waits for all threads of the process). What outlives a call holds the process by pidfd and its
//! *address space* by an open `/proc/PID/mem`. Bytes go either through a blocked thread or through that file, never
//! to a mere process id: behind one there may be another program by then, even a privileged one.

mod blocking;
mod identity;
mod maps;
mod objects;
mod offset;
mod privilege;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::PollFlags;
use nix::unistd::Pid;
use vidcompat_proto::queue::ClientKey;

use crate::sys::{self, Mapping, MemoryFault, RemoteMemory, Vma};

pub use blocking::{CallShape, FileFlags};
pub use identity::Identity;
pub use objects::{OpenFile, offset_of_start};
pub use offset::given_offset;
pub use privilege::is_admin;

/// The next process's key.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// One process with one address space.
#[derive(Debug)]
pub struct Client {
    key: ClientKey,
    process: Pid,
    identity: Identity,
    pidfd: OwnedFd,
    memory: RemoteMemory,
    /// `/proc/PID/maps`, of the same address space.
    maps: File,
    /// `/proc/PID/pagemap`, of the same address space.
    pagemap: File,
}

/// A client and the thread of it that is blocked in a request.
#[derive(Clone, Debug)]
pub struct BlockedThread {
    client: Arc<Client>,
    tid: Pid,
}

impl BlockedThread {
    /// Its process.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Can `len` bytes from `client_addr` be written by us on the client's behalf? As `get_user_pages` would say,
    /// with the exception of device memory, which we cannot reach.
    ///
    /// # Errors
    /// [`MemoryFault::Fault`] where any page is unmapped, read-only or out of reach.
    pub fn check_writable(&self, client_addr: u64, len: u32) -> Result<(), MemoryFault> {
        let end = client_addr
            .checked_add(u64::from(len))
            .ok_or(MemoryFault::Fault)?;
        maps::each_unnamed(&self.client.maps, client_addr..end, |vma| {
            if vma.writable {
                sys::read_byte(self.tid, vma.start.max(client_addr)).map(drop)
            } else {
                Err(MemoryFault::Fault)
            }
        })
    }

    /// Shows `each` the mappings that cover `range`, one after the other.
    ///
    /// # Errors
    /// The first that `each` gives; [`MemoryFault::Fault`] for a hole; [`MemoryFault::Gone`] when the address space is
    /// gone.
    pub fn each_mapping(
        &self,
        range: std::ops::Range<u64>,
        each: impl FnMut(Vma) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        maps::each_covering(&self.client.maps, range, each)
    }

    /// Is any of `range` locked into memory (mlock)? Where that cannot be told, it is.
    #[must_use]
    pub fn is_locked(&self, range: std::ops::Range<u64>) -> bool {
        maps::is_locked(self.tid, range).unwrap_or(true)
    }

    /// Is what maps `range` still the mapping that was seen `before`?
    pub fn still_has(&self, range: std::ops::Range<u64>, before: &Vma) -> bool {
        let walked = maps::each_unnamed(&self.client.maps, range, |vma| {
            if before.is_still(&vma) {
                Ok(())
            } else {
                Err(MemoryFault::Fault)
            }
        });
        walked.is_ok()
    }

    /// Can the byte at `client_addr` be read at all?
    ///
    /// # Errors
    /// [`MemoryFault::Fault`] for device memory, and for what is not mapped.
    pub fn touch(&self, client_addr: u64) -> Result<(), MemoryFault> {
        sys::read_byte(self.tid, client_addr).map(drop)
    }

    /// Number of the page frame behind `client_addr`; `None` where there is no page, or the kernel does not tell.
    #[must_use]
    pub fn frame(&self, client_addr: u64) -> Option<u64> {
        sys::frame_of(&self.client.pagemap, client_addr)
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The very file that is fd `number` in this thread, as an fd of ours. Only to be called for a kind of file of
    /// which our copy is harmless: the last close of some others has effects, or waits.
    ///
    /// # Errors
    /// What pidfd_getfd says.
    pub fn file(&self, number: i32) -> io::Result<OwnedFd> {
        // A thread may have a table of fds of its own; older kernels can only name the process.
        let thread = (self.tid != self.client.process)
            .then(|| sys::pidfd_open_thread(self.tid).ok())
            .flatten();
        let pidfd = thread.as_ref().unwrap_or(&self.client.pidfd);
        let flags = rustix::process::PidfdGetfdFlags::empty();
        Ok(rustix::process::pidfd_getfd(pidfd, number, flags)?)
    }
}

impl BlockedThread {
    /// Fills `bytes` from `client_addr` in its memory: a struct, an array.
    ///
    /// # Errors
    /// [`MemoryFault::Fault`] where any byte is out of reach.
    pub fn read(&self, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        sys::read_bytes(self.tid, client_addr, bytes)
    }

    /// Writes `bytes` to `client_addr` in its memory.
    ///
    /// # Errors
    /// As [`BlockedThread::read`]; a part may have been written.
    pub fn write(&self, client_addr: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
        sys::write_bytes(self.tid, client_addr, bytes)
    }
}

impl BlockedThread {
    /// The dma-buf that is fd `number` in this thread, as an fd of ours. `None` for what is no dma-buf, and where it
    /// cannot be had.
    pub fn dma_buf(&self, number: i32) -> Option<OwnedFd> {
        self.file_called(number, b"/dmabuf:")
    }

    /// The same of a request of a media device.
    pub fn request(&self, number: i32) -> Option<OwnedFd> {
        self.file_called(number, b"anon_inode:request")
    }

    fn file_called(&self, number: i32, beginning: &[u8]) -> Option<OwnedFd> {
        // Looked at first: closing our copy of some other file could have effects, or wait.
        let link = std::fs::read_link(format!("/proc/{}/fd/{number}", self.tid)).ok()?;
        if !link.as_os_str().as_encoded_bytes().starts_with(beginning) {
            return None;
        }
        self.file(number).ok()
    }
}

impl Client {
    /// `tid` is a thread of `process` that is blocked in a request of ours; the first thread may have ended.
    fn of_process(process: Pid, tid: Pid) -> io::Result<Self> {
        Self::called(ClientKey(NEXT_KEY.fetch_add(1, Ordering::Relaxed)), process, tid)
    }

    /// The process that a daemon before us knew by this key, if it is still the same with the same address space.
    ///
    /// # Errors
    /// `ESRCH` where it has ended, or another program has taken its place; what /proc says.
    pub fn again(key: ClientKey, process: Pid, identity: Identity) -> io::Result<Self> {
        NEXT_KEY.fetch_max(key.0.saturating_add(1), Ordering::Relaxed);
        let client = Self::called(key, process, identity.thread_of(process)?)?;
        if client.identity != identity {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(client)
    }

    fn called(key: ClientKey, process: Pid, tid: Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(process.as_raw()).ok_or(io::ErrorKind::InvalidInput)?,
            rustix::process::PidfdFlags::empty(),
        )?;
        Ok(Self {
            key,
            process,
            // Behind the pidfd, which says whether it was the same process all the time.
            identity: Identity::of(process, tid)?,
            pidfd,
            memory: RemoteMemory::open(tid)?,
            maps: File::open(format!("/proc/{tid}/maps"))?,
            pagemap: File::open(format!("/proc/{tid}/pagemap"))?,
        })
    }

    /// Names this process; never used twice.
    pub fn key(&self) -> ClientKey {
        self.key
    }

    /// What a daemon after us knows it by, with its process id.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The process id, as long as the process lives.
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Is it still the same process with the same address space?
    fn is_alive(&self) -> bool {
        sys::poll(self.pidfd.as_fd(), PollFlags::POLLIN).is_empty() && self.memory.is_alive()
    }

    /// Writes `len` bytes of `source`, from its byte `from` on, to `client_addr`: with one copy through `caller` where that
    /// is a thread of this client that is blocked in a request until this returns, else through the held address space.
    ///
    /// # Errors
    /// See [`MemoryFault`]; nothing was written to any *other* address space.
    pub fn write(
        &self,
        source: &Mapping,
        from: usize,
        len: usize,
        client_addr: u64,
        caller: Option<&BlockedThread>,
    ) -> Result<(), MemoryFault> {
        match caller.filter(|caller| caller.client.key == self.key) {
            Some(caller) => sys::write_from(source, from, len, caller.tid, client_addr),
            None => self.memory.write(source, from, len, client_addr),
        }
    }

    /// Copies `len` bytes from `client_addr` to `target`, from its byte `to` on, by the same ways as [`Client::write`].
    ///
    /// # Errors
    /// See [`MemoryFault`]; a part may have been copied.
    pub fn read(
        &self,
        target: &Mapping,
        to: usize,
        len: usize,
        client_addr: u64,
        caller: Option<&BlockedThread>,
    ) -> Result<(), MemoryFault> {
        match caller.filter(|caller| caller.client.key == self.key) {
            Some(caller) => sys::read_into(target, to, len, caller.tid, client_addr),
            None => self.memory.read(target, to, len, client_addr),
        }
    }
}

/// Processes and threads that a session remembers; the oldest is forgotten, which only costs time. A client that has
/// thousands of them must not cost us as many descriptors.
const MAX_PROCESSES: usize = 16;
const MAX_THREADS: usize = 32;

fn keep_at_most<T>(list: &mut Vec<T>, most: usize) {
    if list.len() >= most {
        list.remove(0);
    }
}

/// The clients of one session, found by the thread that calls.
#[derive(Debug, Default)]
pub struct Clients {
    processes: Vec<Arc<Client>>,
    /// Threads other than a process's first, held by their own pidfd so that a recycled thread id is noticed. Stays
    /// empty on kernels before 6.9, which cannot hold them: there every call looks its process up.
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    tid: Pid,
    pidfd: OwnedFd,
    client: Arc<Client>,
}

impl Thread {
    fn is_alive(&self) -> bool {
        sys::poll(self.pidfd.as_fd(), PollFlags::POLLIN).is_empty() && self.client.is_alive()
    }
}

impl Clients {
    /// The process that thread `tid` belongs to. The thread must be blocked in a request of ours.
    ///
    /// # Errors
    /// `EACCES` where the daemon may not look at that process; `ENOENT` for a thread that we cannot see.
    pub fn of_thread(&mut self, tid: u32) -> io::Result<BlockedThread> {
        let tid = i32::try_from(tid)
            .map(Pid::from_raw)
            .map_err(|_| io::ErrorKind::NotFound)?;
        if tid.as_raw() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(client) = self.remembered(tid) {
            return Ok(BlockedThread { client, tid });
        }
        self.processes.retain(|client| client.is_alive());
        self.threads.retain(Thread::is_alive);
        let process = process_of(tid)?;
        let client = match self.processes.iter().find(|client| client.process == process) {
            Some(client) => Arc::clone(client),
            None => Arc::new(Client::of_process(process, tid)?),
        };
        if !self.processes.iter().any(|known| Arc::ptr_eq(known, &client)) {
            keep_at_most(&mut self.processes, MAX_PROCESSES);
            self.processes.push(Arc::clone(&client));
        }
        if tid != process
            && let Ok(pidfd) = sys::pidfd_open_thread(tid)
        {
            keep_at_most(&mut self.threads, MAX_THREADS);
            self.threads.push(Thread {
                tid,
                pidfd,
                client: Arc::clone(&client),
            });
        }
        Ok(BlockedThread { client, tid })
    }

    /// Those that are remembered, for a daemon after us.
    pub fn processes(&self) -> impl ExactSizeIterator<Item = &Arc<Client>> + Clone {
        self.processes.iter()
    }

    /// Clients of a session that a daemon before us has had; of too many the last.
    #[must_use]
    pub fn again(mut processes: Vec<Arc<Client>>) -> Self {
        processes.drain(..processes.len().saturating_sub(MAX_PROCESSES));
        Self {
            processes,
            threads: Vec::new(),
        }
    }

    fn remembered(&self, tid: Pid) -> Option<Arc<Client>> {
        let first = self
            .processes
            .iter()
            .find(|client| client.process == tid && client.is_alive());
        let other = || {
            self.threads
                .iter()
                .find(|thread| thread.tid == tid && thread.is_alive())
        };
        first
            .cloned()
            .or_else(|| other().map(|thread| Arc::clone(&thread.client)))
    }
}

/// The process (thread group) of a thread, from `/proc/TID/status`.
fn process_of(tid: Pid) -> io::Result<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
    let tgid = status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))
        .map(str::trim);
    tgid.and_then(|tgid| tgid.parse().ok())
        .map(Pid::from_raw)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Fills `bytes` from `client_addr` in the memory of thread `tid`, which is blocked in a request. For what is asked so
/// seldom that nothing is remembered of the client; else see [`Clients`].
///
/// # Errors
/// [`MemoryFault::Fault`] where any byte is out of reach.
pub fn read_blocked(tid: u32, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault> {
    let tid = i32::try_from(tid).ok().filter(|tid| *tid > 0);
    sys::read_bytes(Pid::from_raw(tid.ok_or(MemoryFault::Gone)?), client_addr, bytes)
}

/// The process that thread `tid` belongs to now, and its name: for people, who are told of a moment that has passed.
pub fn process_and_name(tid: u32) -> Option<(u32, String)> {
    let tid = i32::try_from(tid).ok().filter(|tid| *tid > 0)?;
    let process = process_of(Pid::from_raw(tid)).ok()?.as_raw().cast_unsigned();
    let name = std::fs::read(format!("/proc/{process}/comm")).ok()?;
    Some((
        process,
        String::from_utf8_lossy(name.trim_ascii_end()).into_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::Clients;
    use crate::sys::MemoryFault;
    use nix::unistd::{getpid, gettid};

    fn addr(bytes: &[u8]) -> u64 {
        u64::try_from(bytes.as_ptr().addr()).expect("64 bits")
    }

    #[test]
    fn threads_of_one_process_are_one_client_and_a_thread_is_remembered() {
        let mut clients = Clients::default();
        let first = clients
            .of_thread(gettid().as_raw().cast_unsigned())
            .expect("ourselves");
        let again = clients
            .of_thread(gettid().as_raw().cast_unsigned())
            .expect("ourselves");
        let leader = clients
            .of_thread(getpid().as_raw().cast_unsigned())
            .expect("ourselves");
        assert_eq!(first.client().key(), again.client().key());
        assert_eq!(first.client().key(), leader.client().key());
        assert_eq!(first.client().process(), getpid());
    }

    #[test]
    fn another_process_is_another_client_and_one_that_ended_is_noticed() {
        let mut clients = Clients::default();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep(1)");
        let us = clients
            .of_thread(gettid().as_raw().cast_unsigned())
            .expect("ourselves");
        let them = clients.of_thread(child.id()).expect("our child");
        assert_ne!(us.client().key(), them.client().key());
        assert!(them.client().is_alive());
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(!them.client().is_alive());
    }

    #[test]
    fn an_exec_ends_the_client_although_the_process_goes_on() {
        let mut clients = Clients::default();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read _; exec sleep 60"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh(1)");
        let before = clients.of_thread(child.id()).expect("our child");
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"\n").expect("a reader");
        let comm = || std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
        while comm().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert!(!before.client().is_alive());
        assert_ne!(
            clients.of_thread(child.id()).expect("our child").client().key(),
            before.client().key()
        );
        child.kill().expect("our child");
        child.wait().expect("our child");
    }

    #[test]
    fn writable_memory_passes_and_every_hole_is_a_fault() {
        let mut clients = Clients::default();
        let us = clients
            .of_thread(gettid().as_raw().cast_unsigned())
            .expect("ourselves");
        let heap = vec![1u8; 3 << 20];
        assert_eq!(us.check_writable(addr(&heap) + 3, 3 << 19), Ok(()));
        assert_eq!(us.check_writable(addr(b"read-only"), 4), Err(MemoryFault::Fault));
        assert_eq!(us.check_writable(0, 4), Err(MemoryFault::Fault));
        assert_eq!(us.check_writable(u64::MAX - 2, 4), Err(MemoryFault::Fault));
        assert_eq!(us.check_writable(addr(&heap), u32::MAX), Err(MemoryFault::Fault));
    }
}
