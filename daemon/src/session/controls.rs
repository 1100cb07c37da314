//! Extended controls: a list of them in the client's memory, whose payloads are in the client's memory again.
//!
//! The kernel follows the payload pointers while it works through the list, so each is replaced by one to memory of
//! ours that is as large as the kernel may touch, and as accessible as the client's is: what fails, fails in the
//! driver's own order. It knows nothing of particular controls, and remembers nothing of them: the size of one may
//! change with the format.

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::controls::{Payload, V4l2ExtControl, V4l2ExtControls, V4l2QueryExtCtrl};
use vidcompat_proto::ioctl::{ControlsOp, Row};
use zerocopy::{FromBytes, IntoBytes};

use crate::client::BlockedThread;
use crate::sys::{CpuUse, HostPayload, Mapping, MemoryFault};

use super::{Requester, Session};

/// Bytes of payloads in one call that are not worth a look at the budget.
const SMALL: u64 = 128 << 10;

/// A request of the client's is a file of the client's: the driver is given none, and refuses.
const NO_REQUEST: i32 = -1;

impl Session {
    /// `VIDIOC_G_EXT_CTRLS`, `S_EXT_CTRLS` or `TRY_EXT_CTRLS`.
    pub(super) fn ext_controls(
        &self,
        row: &Row,
        op: ControlsOp,
        argument: &mut [u8],
        who: Requester,
    ) -> Result<i32, Errno> {
        let array = row.array.ok_or(Errno::ENOTTY)?;
        self.with_array(array, argument, who, |argument, controls, caller| {
            let mut header = V4l2ExtControls::read_from_bytes(argument).map_err(|_| Errno::ENOTTY)?;
            let request_fd = std::mem::replace(&mut header.request_fd, NO_REQUEST);
            let mut charge = None;
            let outcome = carry(
                Call { op, abi: who.abi },
                controls,
                caller,
                |id| self.node.query_ext_ctrl(id).ok(),
                |bytes| {
                    let Some(caller) = caller.filter(|_| bytes > SMALL) else {
                        return Ok(());
                    };
                    let client = caller.client().process().as_raw();
                    charge = Some(
                        self.device
                            .budget()
                            .charge(client, bytes)
                            .map_err(|_| Errno::ENOMEM)?,
                    );
                    Ok(())
                },
                |controls, payloads| {
                    self.node
                        .ext_controls(row, header.as_mut_bytes(), controls, payloads)
                },
            );
            if header.request_fd == NO_REQUEST {
                header.request_fd = request_fd;
            }
            argument.copy_from_slice(header.as_bytes());
            outcome
        })
    }
}

/// A client's memory, as the kernel would reach it.
trait ClientMemory {
    fn read(&self, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault>;
    fn write(&self, client_addr: u64, bytes: &[u8]) -> Result<(), MemoryFault>;
    fn check_writable(&self, client_addr: u64, len: u32) -> Result<(), MemoryFault>;
}

impl ClientMemory for BlockedThread {
    fn read(&self, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        BlockedThread::read(self, client_addr, bytes)
    }

    fn write(&self, client_addr: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
        BlockedThread::write(self, client_addr, bytes)
    }

    fn check_writable(&self, client_addr: u64, len: u32) -> Result<(), MemoryFault> {
        BlockedThread::check_writable(self, client_addr, len)
    }
}

/// Which way the payloads of a call go, and how long its pointers are.
#[derive(Clone, Copy)]
struct Call {
    op: ControlsOp,
    abi: ClientAbi,
}

/// A control on its way: what the client gave, and what the driver is given for it.
struct Carried {
    client: V4l2ExtControl,
    client_addr: u64,
    /// The size that the driver is given.
    passed: u32,
    payload: Option<Payload>,
    held: Held,
}

enum Held {
    Nothing,
    /// A payload as it was read, as far as the driver may touch it, and as the driver leaves it.
    Bytes {
        before: Vec<u8>,
        now: Vec<u8>,
    },
    ReadOnly(Mapping),
    Unreachable,
}

impl Carried {
    /// What the device says of a control counts for this call only.
    fn new(
        control: V4l2ExtControl,
        abi: ClientAbi,
        query: impl FnOnce(u32) -> Option<V4l2QueryExtCtrl>,
    ) -> Self {
        // Of size 0 no byte is touched, and most controls are values and have it.
        let payload = match control.size {
            0 => None,
            _ => query(control.id).as_ref().and_then(Payload::of),
        };
        let [low @ .., _, _, _, _] = control.value;
        Self {
            client: control,
            client_addr: match abi {
                ClientAbi::Native => u64::from_ne_bytes(control.value),
                ClientAbi::I386 | ClientAbi::Arm32 => u32::from_ne_bytes(low).into(),
            },
            passed: payload.map_or(0, |payload| payload.passed(control.size)),
            payload,
            held: Held::Nothing,
        }
    }

    /// Fetches the payload.
    fn fetch(&mut self, op: ControlsOp, memory: &impl ClientMemory) -> Result<(), Errno> {
        let Some(payload) = self.payload else {
            return Ok(());
        };
        let touched = payload.touched(self.passed);
        let mut before = vec![0; touched as usize];
        let readable = memory.read(self.client_addr, &mut before).is_ok();
        let writable = readable && memory.check_writable(self.client_addr, touched).is_ok();
        self.held = match op {
            _ if writable => {
                let mut now = before.clone();
                now.resize(self.passed as usize, 0);
                Held::Bytes { before, now }
            }
            // The driver takes it, and the kernel fails to write it back.
            ControlsOp::Set if readable => {
                Held::ReadOnly(unwritable(&before, self.passed).map_err(|_| Errno::ENOMEM)?)
            }
            _ => Held::Unreachable,
        };
        Ok(())
    }

    fn host(&mut self) -> HostPayload<'_> {
        match &mut self.held {
            Held::Nothing => HostPayload::None,
            Held::Bytes { now, .. } => HostPayload::Bytes(now),
            Held::ReadOnly(mapping) => HostPayload::ReadOnly(mapping),
            Held::Unreachable => HostPayload::Unreachable,
        }
    }

    /// Gives back what the driver has written, and makes `control`, which comes from the driver, the client's.
    fn settle(self, control: &mut V4l2ExtControl, memory: &impl ClientMemory) -> Result<(), MemoryFault> {
        if control.size == self.passed {
            control.size = self.client.size;
        }
        if self.payload.is_some() {
            control.value = self.client.value;
        }
        let Held::Bytes { before, now } = self.held else {
            return Ok(());
        };
        let differs = |at: &usize| before[*at] != now[*at];
        let (Some(first), Some(last)) = ((0..before.len()).find(differs), (0..before.len()).rfind(differs))
        else {
            return Ok(());
        };
        let offset = u64::try_from(first).map_err(|_| MemoryFault::Fault)?;
        let at = self.client_addr.checked_add(offset).ok_or(MemoryFault::Fault)?;
        memory.write(at, &now[first..=last])
    }
}

/// Memory with `bytes` and zeroes up to `len`, which the kernel cannot write for us.
fn unwritable(bytes: &[u8], len: u32) -> std::io::Result<Mapping> {
    let mut file = File::from(memfd_create(c"vidcompat-control", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.set_len(len.into())?;
    Mapping::shared(&file, 0, len as usize, CpuUse::Read)
}

/// Carries `controls` with their payloads to the driver, which is `call`, and back.
///
/// `query` tells what the device says of a control, `charge` whether so many bytes may be held meanwhile. There is
/// `memory` wherever there are controls.
fn carry(
    how: Call,
    controls: &mut [V4l2ExtControl],
    memory: Option<&impl ClientMemory>,
    query: impl Fn(u32) -> Option<V4l2QueryExtCtrl>,
    charge: impl FnOnce(u64) -> Result<(), Errno>,
    call: impl FnOnce(&mut [V4l2ExtControl], &mut [HostPayload<'_>]) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    let Some(memory) = memory else {
        return call(controls, &mut []);
    };
    let mut carried: Vec<_> = controls
        .iter()
        .map(|control| Carried::new(*control, how.abi, &query))
        .collect();
    charge(carried.iter().map(|one| 2 * u64::from(one.passed)).sum())?;
    for (one, control) in carried.iter_mut().zip(controls.iter_mut()) {
        one.fetch(how.op, memory)?;
        control.size = one.passed;
    }
    let mut payloads: Vec<_> = carried.iter_mut().map(Carried::host).collect();
    let mut outcome = call(controls, &mut payloads);
    drop(payloads);
    for (one, control) in carried.into_iter().zip(controls) {
        if one.settle(control, memory).is_err() {
            outcome = Err(Errno::EFAULT);
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
