//! Extended controls: a list of them in the client's memory, whose payloads are in the client's memory again.
//!
//! The kernel follows the payload pointers while it works through the list, so each is replaced by one to memory of
//! ours that is as large as the kernel may touch, and as accessible as the client's is: what fails, fails in the
//! driver's own order. It knows nothing of particular controls, and remembers nothing of them: the size of one may
//! change with the format.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::controls::{Payload, V4l2ExtControl, V4l2ExtControls, V4l2QueryExtCtrl};
use vidcompat_proto::ioctl::Row;
use zerocopy::{FromBytes, IntoBytes};

use crate::client::BlockedThread;
use crate::sys::{self, HostPayload, MemoryFault, Mirror};

use super::once::S_EXT_CTRLS;
use super::{Requester, Session};

/// Bytes of payloads in one call that are not worth a look at the budget.
const SMALL: u64 = 128 << 10;

/// Payloads of one call that may be in part out of reach: each costs us a file and mappings, of which the system gives a
/// process only so many. The driver fails at the first that it needs; what comes later is out of reach altogether.
const MOST_MIRRORS: usize = 16;

/// `linux/videodev2.h`: the controls of a request.
const V4L2_CTRL_WHICH_REQUEST_VAL: u32 = 0x0f01_0000;
/// What is no request the driver refuses.
const NO_REQUEST: i32 = -1;

impl Session {
    /// `VIDIOC_G_EXT_CTRLS`, `S_EXT_CTRLS` or `TRY_EXT_CTRLS`.
    pub(super) fn ext_controls(&self, row: &Row, argument: &mut [u8], who: Requester) -> Result<i32, Errno> {
        let array = row.array.ok_or(Errno::ENOTTY)?;
        self.with_array(array, argument, who, |argument, controls, caller| {
            let mut header = V4l2ExtControls::read_from_bytes(argument).map_err(|_| Errno::ENOTTY)?;
            // A request of the client's is a file of the client's.
            let request_fd = header.request_fd;
            let request = match (header.which, self.caller(who.tid)) {
                (V4L2_CTRL_WHICH_REQUEST_VAL, Ok(caller)) => caller.request(request_fd),
                _ => None,
            };
            header.request_fd = request.as_ref().map_or(NO_REQUEST, AsRawFd::as_raw_fd);
            let given = header.request_fd;
            let mut charge = None;
            let sets = row.command.number() == S_EXT_CTRLS;
            let outcome = carry(
                who.abi,
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
                    let ids = controls.iter().map(|control| control.id);
                    let ids: Vec<u32> = if sets { ids.collect() } else { Vec::new() };
                    self.once(who.call, ids.into_iter(), || {
                        self.node
                            .ext_controls(row, header.as_mut_bytes(), controls, payloads)
                    })
                },
            );
            if header.request_fd == given {
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
    /// The same where some of the client's memory is out of reach; `before` is what can be written.
    Mirror {
        before: Vec<u8>,
        mirror: Mirror,
    },
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
    fn fetch(&mut self, memory: &impl ClientMemory) -> Result<(), Errno> {
        let Some(payload) = self.payload else {
            return Ok(());
        };
        let touched = payload.touched(self.passed);
        let mut before = vec![0; touched as usize];
        let all = memory
            .read(self.client_addr, &mut before)
            .and_then(|()| memory.check_writable(self.client_addr, touched));
        self.held = match all {
            Ok(()) => {
                let mut now = before.clone();
                now.resize(self.passed as usize, 0);
                Held::Bytes { before, now }
            }
            Err(_) => self.mirror(before, memory).map_err(|_| Errno::ENOMEM)?,
        };
        Ok(())
    }

    /// What can be reached of the payload, which is `room` for it: a first part can be read, and a first part of that
    /// written.
    fn mirror(&self, mut room: Vec<u8>, memory: &impl ClientMemory) -> io::Result<Held> {
        let page = sys::page_size()?;
        let in_page = usize::try_from(self.client_addr % page as u64).unwrap_or(0);
        let (mut readable, mut writable, mut at) = (0, 0, self.client_addr);
        for piece in pieces(room.len(), page - in_page, page) {
            // A page at a time, so that the length fits.
            let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if memory.read(at, &mut room[piece.clone()]).is_err() {
                break;
            }
            if writable == readable && memory.check_writable(at, len).is_ok() {
                writable = piece.end;
            }
            readable = piece.end;
            at = at.wrapping_add(len.into());
        }
        if readable == 0 {
            return Ok(Held::Unreachable);
        }
        room.truncate(readable);
        let mirror = Mirror::new(in_page, self.passed as usize, &room, writable)?;
        room.truncate(writable);
        Ok(Held::Mirror { before: room, mirror })
    }

    fn host(&mut self) -> HostPayload<'_> {
        match &mut self.held {
            Held::Nothing => HostPayload::None,
            Held::Bytes { now, .. } => HostPayload::Bytes(now),
            Held::Mirror { mirror, .. } => HostPayload::Mirror(mirror),
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
        let (before, now) = match self.held {
            Held::Bytes { before, now } => (before, now),
            Held::Mirror { before, mirror } => {
                let mut now = vec![0; before.len()];
                mirror.read(&mut now).map_err(|_| MemoryFault::Fault)?;
                (before, now)
            }
            Held::Nothing | Held::Unreachable => return Ok(()),
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

/// `0..len` in pieces: the first of `first` bytes, the others of `rest`.
fn pieces(len: usize, first: usize, rest: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let end = (if start == 0 { first } else { start + rest }).min(len);
        (start < len).then(|| std::mem::replace(&mut start, end)..end)
    })
}

/// Carries `controls` with their payloads to the driver, which is `call`, and back.
///
/// `query` tells what the device says of a control, `charge` whether so many bytes may be held meanwhile. There is
/// `memory` wherever there are controls.
fn carry(
    abi: ClientAbi,
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
        .map(|control| Carried::new(*control, abi, &query))
        .collect();
    charge(carried.iter().map(|one| 2 * u64::from(one.passed)).sum())?;
    let mut mirrors = 0;
    for one in &mut carried {
        one.fetch(memory)?;
        if matches!(one.held, Held::Mirror { .. }) {
            mirrors += 1;
            if mirrors > MOST_MIRRORS {
                one.held = Held::Unreachable;
            }
        }
    }
    // Not earlier: a list that never reached the driver goes back as it came.
    for (one, control) in carried.iter().zip(controls.iter_mut()) {
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
