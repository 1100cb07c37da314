//! What all sessions of one real node share: where it is, what it can do, what may be spent on it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{V4l2RequestBuffers, memory};
use vidcompat_proto::ioctl::Row;

use super::counters::Counters;
use crate::backend::v4l2::RealNode;
use crate::memory::{Budget, Heap};
use crate::observe::model;
use crate::resolve::{Importer, OwnBuffers, Policy, importer_of};

/// What a device is served with.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The dma-heap, where the kernel has one.
    pub heap: Option<Arc<Heap>>,
    /// What may be spent on buffers.
    pub budget: Arc<Budget>,
    /// What may be imported into which kind of queue.
    pub policy: Arc<Policy>,
    /// The dma-bufs of all sessions of this daemon.
    pub own: Arc<OwnBuffers>,
    /// Clients with the shim may have their memory exchanged for the device's.
    pub may_adopt: bool,
}

/// A device node: file system, inode, device number. A node that is made anew has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64, u64);

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino(), metadata.rdev())
    }
}

/// A real node, and what has been learned of its driver.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    options: DeviceOptions,
    runtime: Handle,
    /// What was at `path` when we began: another device there is not ours to lend.
    identity: Identity,
    /// By number: does the driver know the ioctl?
    known: [OnceLock<bool>; 256],
    capabilities: Mutex<BTreeMap<u32, u32>>,
    importer: OnceLock<Option<Importer>>,
    refuses_heap: AtomicBool,
    complained: Mutex<Option<Instant>>,
    /// When a file was closed last of which whoever keeps our files may still have one.
    left: Mutex<Option<Instant>>,
    /// Counts opens and closes of our node.
    generation: AtomicU64,
    /// Of all its sessions: what was captured, and what was put out.
    totals: [Arc<Counters>; 2],
}

/// Complaints about single calls of clients: one in this time, or a client could flood the log.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// How long whoever keeps our files may take to close one.
const LEAVING: Duration = Duration::from_millis(500);

impl Device {
    /// The node at `path`; its sessions wait for the device on `runtime`.
    ///
    /// # Errors
    /// Nothing is there.
    pub fn new(path: PathBuf, options: DeviceOptions, runtime: Handle) -> io::Result<Arc<Self>> {
        let identity = Identity::of(&fs::metadata(&path)?);
        Ok(Arc::new(Self {
            path,
            options,
            runtime,
            identity,
            known: [const { OnceLock::new() }; 256],
            capabilities: Mutex::default(),
            importer: OnceLock::new(),
            refuses_heap: AtomicBool::new(false),
            complained: Mutex::default(),
            left: Mutex::default(),
            generation: AtomicU64::new(0),
            totals: <[Arc<Counters>; 2]>::default(),
        }))
    }

    pub(super) fn totals(&self) -> &[Arc<Counters>; 2] {
        &self.totals
    }

    /// What all its sessions have done, for status: what was captured, and what was put out.
    pub fn told_totals(&self) -> model::Totals {
        let [capture, output] = &self.totals;
        model::Totals {
            capture: capture.model(),
            output: output.model(),
        }
    }

    /// Where the real node is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `node`, if it is the device that was here when we began.
    pub(super) fn is_still(&self, node: RealNode) -> io::Result<RealNode> {
        if Identity::of(&node.metadata()?) == self.identity {
            return Ok(node);
        }
        if self.may_complain() {
            tracing::warn!(device = %self.path.display(), "another device has taken this name; restart vidcompatd to serve it");
        }
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// A file of our node was opened or closed.
    pub(super) fn files_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A file is closed that whoever keeps our files closes a little later.
    pub(super) fn leaves(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Does `call`, again for as long as the driver says `busy` and a file that is closed may be what it means.
    pub(super) fn unless_leaving<T, E>(
        &self,
        busy: impl Fn(&E) -> bool,
        mut call: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        loop {
            let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
            match call() {
                Err(error) if busy(&error) && left.is_some_and(|left| left.elapsed() < LEAVING) => {
                    thread::sleep(Duration::from_millis(2));
                }
                outcome => return outcome,
            }
        }
    }

    /// Changes with each open and close.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// May a complaint about a client's call be logged now?
    pub(super) fn may_complain(&self) -> bool {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= COMPLAINTS);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn heap(&self) -> Option<&Heap> {
        self.options.heap.as_deref()
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.options.budget
    }

    /// May clients' memory be exchanged for ours?
    pub(super) fn may_adopt(&self) -> bool {
        self.options.may_adopt
    }

    /// What may be imported into which kind of queue.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.options.policy
    }

    /// The dma-bufs of all sessions of this daemon.
    pub fn own(&self) -> &Arc<OwnBuffers> {
        &self.options.own
    }

    /// Has it refused scattered memory? It is not offered any again: each trial is a line in the kernel's log.
    pub(super) fn refuses_heap(&self) -> bool {
        self.refuses_heap.load(Ordering::Relaxed)
    }

    /// It has refused the memory of a heap. `EFAULT` is what dma-contig says of memory that is not contiguous; others may
    /// have passed by tomorrow.
    pub(super) fn heap_was_refused(&self, errno: Errno) {
        if errno == Errno::EFAULT {
            self.refuses_heap.store(true, Ordering::Relaxed);
        }
    }

    /// How its queues use what they import, as far as the modules tell that its driver's module uses: one of vb2's three
    /// kinds of memory, and no other.
    pub(super) fn module_importer(&self) -> Option<Importer> {
        *self.importer.get_or_init(|| importer_of(self.identity.2))
    }

    /// Does the driver know the ioctl of `row`, which has a probe? Asked once.
    pub(super) fn knows(&self, node: &RealNode, row: &'static Row) -> bool {
        let Some(probe) = row.probe else { return true };
        *self.known[usize::from(probe)].get_or_init(|| node.knows(vidcompat_proto::ioctl::row(probe)))
    }

    /// What its queues have told so far, for a daemon after us.
    pub(super) fn known_capabilities(&self) -> MutexGuard<'_, BTreeMap<u32, u32>> {
        self.capabilities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a daemon before us has learned of it.
    pub(super) fn learn(&self, capabilities: &[(u32, u32)], refuses_heap: bool) {
        self.known_capabilities().extend(capabilities.iter().copied());
        self.refuses_heap.fetch_or(refuses_heap, Ordering::Relaxed);
    }

    /// Has its queue told that its driver is none of vb2's?
    pub(super) fn is_no_vb2(&self, buf_type: u32) -> bool {
        let known = self.capabilities.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&buf_type) == Some(&0)
    }

    /// `V4L2_BUF_CAP_*` of the real queue; 0 where the driver does not tell (it is no vb2 driver). Asked once for each
    /// buffer type, by REQBUFS with count 0, which frees nothing but this file's own buffers; a driver answers it only
    /// for a memory that it has.
    ///
    /// # Errors
    /// `EINVAL` for a type that the device has not; `EBUSY` while another file owns the queue.
    pub(super) fn queue_capabilities(&self, node: &RealNode, buf_type: u32) -> Result<u32, Errno> {
        if let Some(known) = self
            .capabilities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&buf_type)
        {
            return Ok(*known);
        }
        let ask = |memory| {
            let mut request = V4l2RequestBuffers {
                buf_type,
                memory,
                ..V4l2RequestBuffers::default()
            };
            node.reqbufs(&mut request).map(|()| request.capabilities)
        };
        let mut answer = ask(memory::MMAP);
        if answer == Err(Errno::EINVAL) {
            answer = ask(memory::DMABUF);
        }
        let capabilities = answer?;
        self.capabilities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(buf_type, capabilities);
        Ok(capabilities)
    }
}
