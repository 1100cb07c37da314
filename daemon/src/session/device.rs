//! What all sessions of one real node share: where it is, what it can do, what may be spent on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{V4l2RequestBuffers, buf_cap, memory};
use vidcompat_proto::ioctl::Row;

use crate::backend::v4l2::RealNode;
use crate::memory::{Budget, Heap};

/// What a device is served with.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The dma-heap, where the kernel has one.
    pub heap: Option<Arc<Heap>>,
    /// What may be spent on buffers.
    pub budget: Arc<Budget>,
}

/// A real node, and what has been learned of its driver.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    options: DeviceOptions,
    runtime: Handle,
    known: Mutex<HashMap<u8, bool>>,
    capabilities: Mutex<HashMap<u32, u32>>,
}

impl Device {
    /// The node at `path`; its sessions wait for the device on `runtime`.
    #[must_use]
    pub fn new(path: PathBuf, options: DeviceOptions, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            path,
            options,
            runtime,
            known: Mutex::default(),
            capabilities: Mutex::default(),
        })
    }

    /// Where the real node is.
    pub fn path(&self) -> &Path {
        &self.path
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

    /// Does the driver know the ioctl of `row`, which has a probe? Asked once.
    pub(super) fn knows(&self, node: &RealNode, row: &'static Row) -> bool {
        let Some(probe) = row.probe else { return true };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known
            .entry(probe)
            .or_insert_with(|| node.knows(vidcompat_proto::ioctl::row(probe)))
    }

    /// `V4L2_BUF_CAP_*` of the real queue. Asked once for each buffer type, by REQBUFS with count 0, which frees
    /// nothing but this file's own buffers.
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
        let mut request = V4l2RequestBuffers {
            buf_type,
            memory: memory::MMAP,
            ..V4l2RequestBuffers::default()
        };
        node.reqbufs(&mut request)?;
        // Kernels before 4.20 say nothing; every driver has MMAP, and an import that fails is noticed.
        let capabilities = match request.capabilities {
            0 => buf_cap::MMAP | buf_cap::DMABUF,
            told => told,
        };
        self.capabilities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(buf_type, capabilities);
        Ok(capabilities)
    }
}
