//! A session that a daemon before us has had: from its record, its files in the store, and what the device says.
//!
//! Nobody is served yet, so nothing changes meanwhile but in the device. What comes of it is the session as it was when the
//! last change was written down, and what has happened since is found by comparison (`session::reconcile`).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::Pid;

use super::adoption::{Adoption, Lent};
use super::counters::Counters;
use super::device::Device;
use super::keep::{Keeping, Shelf};
use super::ledger::{Entry, Ledger, UnderWay};
use super::passed::{Imported, Passed, Plane};
use super::queues::{QueueState, Queues, Slot, cpu_use};
use super::read::FrameReader;
use super::reconcile::{Reconciled, reconcile};
use super::record::{Image, Lost, PlaneImage, QueueImage, SlotImage, poll_handle};
use super::serve::Way;
use super::write::FrameWriter;
use super::{Session, State};
use crate::backend::v4l2::RealNode;
use crate::client::{Client, Clients};
use crate::memory::BounceBuffer;
use crate::survive::{Inheritance, Record};
use crate::sys::Mapping;

/// A file that does not go on.
#[derive(Debug)]
pub struct Orphaned {
    /// Why.
    pub why: Lost,
    /// Who sleeps in poll(2) on it, if anybody does (0: nobody) and is to be told to look again. `None`: that is not known.
    pub sleeper: Option<u64>,
}

/// What a session is put together from.
struct Restoring<'a> {
    device: &'a Arc<Device>,
    node: &'a RealNode,
    keeping: &'a Keeping,
    inheritance: &'a mut Inheritance,
    clients: &'a [Arc<Client>],
    /// Memory that was found already: it can stand in a buffer and in a client's address space.
    found: Vec<(Vec<PlaneImage>, Arc<Vec<BounceBuffer>>)>,
}

impl Session {
    /// File `fh` of the daemon before us. What it needs it takes from `inheritance`.
    ///
    /// # Errors
    /// See [`Lost`]: then nothing of it is in the store any more but what is left in `inheritance`.
    pub fn restore(
        device: &Arc<Device>,
        shelf: &Shelf,
        fh: u64,
        inheritance: &mut Inheritance,
    ) -> Result<Arc<Self>, Orphaned> {
        let mut sleeper = None;
        Self::go_on(device, shelf, fh, inheritance, &mut sleeper).map_err(|why| Orphaned { why, sleeper })
    }

    /// File `fh` does not go on. Who sleeps on it stands in its record all the same.
    pub fn give_up(shelf: &Shelf, fh: u64, inheritance: &mut Inheritance, why: Lost) -> Orphaned {
        let name = shelf.name("record", fh);
        let read = inheritance.remove(&name).and_then(|file| Record::open(file).ok());
        drop(shelf.kept(&name));
        let sleeper = read.and_then(|(_, bytes)| poll_handle(&bytes));
        Orphaned { why, sleeper }
    }

    fn go_on(
        device: &Arc<Device>,
        shelf: &Shelf,
        fh: u64,
        inheritance: &mut Inheritance,
        sleeper: &mut Option<u64>,
    ) -> Result<Arc<Self>, Lost> {
        let name = shelf.name("record", fh);
        let file = inheritance
            .remove(&name)
            .ok_or_else(|| Lost::Missing(name.clone()))?;
        let read = Record::open(file)
            .map_err(|error| Lost::Spoilt(error.to_string()))
            .and_then(|(record, bytes)| {
                *sleeper = poll_handle(&bytes);
                Ok((record, Image::read(&bytes)?))
            });
        let (record, image) = match read {
            Ok(read) => read,
            Err(lost) => {
                drop(shelf.kept(&name));
                return Err(lost);
            }
        };
        let next_number = next_number(shelf, fh, &image, inheritance);
        let keeping = Keeping::again(shelf, fh, image.opening.uid, record, next_number);
        let name = shelf.name("device", fh);
        let file = inheritance.remove(&name).ok_or(Lost::Missing(name))?;
        let gone = |error: std::io::Error| Lost::Device(error.to_string());
        let node = RealNode::again(file)
            .and_then(|node| device.is_still(node))
            .map_err(gone)?;
        device.learn(&image.capabilities, image.refuses_heap);
        let clients = clients_again(&image);
        let mut restoring = Restoring {
            device,
            node: &node,
            keeping: &keeping,
            inheritance,
            clients: &clients,
            found: Vec::new(),
        };
        let frames = restoring.frames(&image)?;
        let [captured, put_out] = device.totals();
        let (capture, first) = restoring.queue(&image.capture, captured)?;
        let (output, second) = restoring.queue(&image.output, put_out)?;
        let state = State {
            queues: Queues { capture, output },
            frames,
            writer: FrameWriter::again(&image.writer, put_out),
            poll_handle: sleeper.unwrap_or_default(),
            tokens: image.tokens,
            last_event: image.event,
            once: image.once,
            tickets: image.tickets,
            exports: image.exports,
            ..State::default()
        };
        let session = Self::with(
            device,
            node,
            image.opening,
            Some(keeping),
            Clients::again(clients),
            state,
            image.last_ticket,
        );
        session.know_all_again();
        for (queue, image) in [(first, &image.capture), (second, &image.output)] {
            if queue == Reconciled::Rebuild {
                session.rebuild(image)?;
            }
        }
        session.commit_now();
        Ok(session)
    }

    /// Behind clients' pointers our memory is found to be ours, as before.
    fn know_all_again(self: &Arc<Self>) {
        {
            let state = self.lock();
            for queue in state.queues.each() {
                let of_slots = queue.slots.values().filter_map(|slot| slot.planes.as_ref());
                let lent = queue.adoption.lent().iter().map(|lent| &lent.buffers);
                for buffer in of_slots.chain(lent).flat_map(|buffers| buffers.iter()) {
                    if let Some(dma_buf) = buffer.dma_buf() {
                        self.know_again(dma_buf);
                    }
                }
            }
        }
        self.know_exports_again();
    }

    /// The queue of `image` was being made one that imports, and is neither: its buffers, of which none was in use, are
    /// made again as they were.
    fn rebuild(&self, image: &QueueImage) -> Result<(), Lost> {
        let buf_type = image.core.buf_type();
        let lost = |what: String| Lost::Device(format!("its buffers cannot be made again: {what}"));
        let payer = image
            .slots
            .iter()
            .flat_map(|slot| slot.planes.iter().flatten())
            .find_map(|plane| plane.payer)
            .ok_or_else(|| lost("nobody pays for them".to_owned()))?;
        let mut state = self.lock();
        let queue = state.queues.of_mut(buf_type);
        let importer = queue.importer;
        let again = self.own_again(queue, buf_type, image.core.len(), payer.cast_unsigned());
        queue.importer = importer;
        again.map_err(|errno| lost(errno.to_string()))
    }
}

/// Behind every number that is in the store: buffers are put there before the record tells of them.
fn next_number(shelf: &Shelf, fh: u64, image: &Image, inheritance: &Inheritance) -> u64 {
    let beginning = format!("{}.", shelf.name("buffer", fh));
    let used = inheritance
        .beginning(&beginning)
        .filter_map(|name| name.strip_prefix(&beginning)?.parse::<u64>().ok());
    used.map(|number| number.saturating_add(1))
        .fold(image.next_number, u64::max)
}

/// The processes that are still there.
fn clients_again(image: &Image) -> Vec<Arc<Client>> {
    let again = image.clients.iter().filter_map(|known| {
        let client = Client::again(known.key, Pid::from_raw(known.pid), known.identity);
        client
            .inspect_err(|error| tracing::debug!(pid = known.pid, %error, "a client has gone meanwhile"))
            .ok()
    });
    again.map(Arc::new).collect()
}

impl Restoring<'_> {
    fn frames(&mut self, image: &Image) -> Result<FrameReader, Lost> {
        let name = self.keeping.frame_name();
        let copy = self.inheritance.remove(&name);
        let copy = copy.map(|file| (File::from(file), self.keeping.frame_kept()));
        let budget = self.device.budget();
        let charge = |payer, bytes| budget.charge_again(payer, bytes);
        FrameReader::again(&image.reader, copy, charge, &self.device.totals()[0])
            .map_err(|error| Lost::Spoilt(error.to_string()))
    }

    fn queue(&mut self, image: &QueueImage, total: &Arc<Counters>) -> Result<(QueueState, Reconciled), Lost> {
        let mut queue = QueueState {
            core: image.core.clone(),
            provider: image.provider,
            importer: image.importer,
            refused: image.refused.clone(),
            passed: image.passed.as_ref().map(|passed| {
                let mut again = Passed::new(passed.memory, passed.end);
                again.named_again(&passed.names);
                let imported = passed.imported.iter().map(|imported| {
                    let planes = imported.planes.iter();
                    let again = Imported {
                        prepared: imported.is_prepared,
                        planes: planes
                            .map(|(theirs, ours)| Plane::again(*theirs, *ours))
                            .collect(),
                        request_fd: imported.request_fd,
                    };
                    (imported.index, again)
                });
                again.imported = imported.collect();
                again
            }),
            ledger: ledger(image),
            ..QueueState::counted(total)
        };
        let reconciled = reconcile(self.node, self.device, &mut queue, image.under_way)?;
        if reconciled == Reconciled::Goes {
            let buf_type = queue.core.buf_type();
            let known: Vec<_> = image
                .slots
                .iter()
                .filter(|slot| queue.core.has(slot.index))
                .collect();
            for slot in known {
                match self.slot(slot, buf_type) {
                    Ok(again) => drop(queue.slots.insert(slot.index, again)),
                    // It was freed already, and more may have been made in its place: the call comes again and makes all
                    // of it anew.
                    Err(Lost::Missing(_)) if image.under_way == Some(UnderWay::Remaking) => {
                        queue.forget_buffers();
                        break;
                    }
                    Err(lost) => return Err(lost),
                }
            }
        }
        let lent = image.lent.iter().filter_map(|lent| {
            let planes = self.planes(&lent.planes, queue.core.buf_type(), None).ok()?;
            Some(Lent {
                client: lent.client,
                pid: lent.pid,
                client_addr: lent.client_addr,
                length: lent.length,
                plane: usize::try_from(lent.plane)
                    .ok()
                    .filter(|plane| *plane < planes.len())?,
                buffers: planes,
                offered: lent.is_offered.then(Instant::now),
                asked_back: lent.asked_back,
            })
        });
        queue.adoption = Adoption::again(lent.collect());
        Ok((queue, reconciled))
    }

    fn slot(&mut self, image: &SlotImage, buf_type: u32) -> Result<Slot, Lost> {
        let planes = image
            .planes
            .as_ref()
            .map(|planes| self.planes(planes, buf_type, Some(image.index)))
            .transpose()?;
        let ways = image.ways.iter();
        Ok(Slot {
            planes,
            client: image
                .client
                .and_then(|key| self.clients.iter().find(|client| client.key() == key))
                .map(Arc::clone),
            ways: Arc::new(
                ways.map(|way| Arc::new(Way::inherited(way.claim, way.is_imported, way.marks.clone())))
                    .collect(),
            ),
        })
    }

    /// Our memory; that of the device's own buffer `index` is mapped once more.
    fn planes(
        &mut self,
        images: &[PlaneImage],
        buf_type: u32,
        index: Option<u32>,
    ) -> Result<Arc<Vec<BounceBuffer>>, Lost> {
        let known = |(of, _): &&(Vec<PlaneImage>, _)| of == images;
        if images.iter().any(|image| image.number.is_some())
            && let Some((_, planes)) = self.found.iter().find(known)
        {
            return Ok(Arc::clone(planes));
        }
        let planes = images
            .iter()
            .zip(0..)
            .map(|(image, plane)| self.plane(image, buf_type, index, plane))
            .collect::<Result<Vec<_>, _>>()?;
        let planes = Arc::new(planes);
        self.found.push((images.to_vec(), Arc::clone(&planes)));
        Ok(planes)
    }

    fn plane(
        &mut self,
        image: &PlaneImage,
        buf_type: u32,
        index: Option<u32>,
        plane: usize,
    ) -> Result<BounceBuffer, Lost> {
        let cpu = cpu_use(buf_type);
        let size = usize::try_from(image.size).map_err(|_| Lost::Spoilt("a size".to_owned()))?;
        let charge = self
            .device
            .budget()
            .charge_again(image.payer.unwrap_or_default(), image.size.next_multiple_of(4096));
        let unmapped = |error: std::io::Error| Lost::Device(format!("a buffer cannot be mapped: {error}"));
        if let Some(number) = image.number {
            let name = self.keeping.name_of(number);
            let dma_buf: OwnedFd = self.inheritance.remove(&name).ok_or(Lost::Missing(name))?;
            let kept = self.keeping.kept(number);
            let mapping = Mapping::shared(&dma_buf, 0, size, cpu).map_err(unmapped)?;
            let buffer = BounceBuffer::from_dma_buf(dma_buf, mapping, charge);
            buffer
                .keep(|_| Ok((number, kept)))
                .map_err(|error| Lost::Spoilt(error.to_string()))?;
            if image.is_handed_out {
                drop(buffer.hand_out());
            }
            return Ok(buffer);
        }
        let index = index.ok_or_else(|| Lost::Spoilt("a buffer of the device's own is lent".to_owned()))?;
        let described = super::reconcile::query(self.node, buf_type, index)
            .map_err(|errno| Lost::Device(errno.to_string()))?;
        let described = described
            .described()
            .get(plane)
            .copied()
            .ok_or_else(|| Lost::Device("a plane is gone".to_owned()))?;
        let offset = u32::try_from(described.m & 0xffff_ffff).unwrap_or_default();
        let length = u32::try_from(image.size).map_err(|_| Lost::Spoilt("a size".to_owned()))?;
        let mapping = self.node.map(offset, length, cpu).map_err(unmapped)?;
        Ok(BounceBuffer::from_device(mapping, charge))
    }
}

fn ledger(image: &QueueImage) -> Ledger {
    let entries = image.entries.iter().map(|entry| {
        let returned = entry
            .returned
            .as_ref()
            .and_then(|(by, reply)| Some((*by, reply.buffer()?)));
        let again = Entry {
            place: entry.place,
            given_by: entry.given_by,
            unanswered: entry.unanswered,
            returned,
        };
        (entry.index, again)
    });
    Ledger::restored(entries.collect(), image.done.clone())
}
