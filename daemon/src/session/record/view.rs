//! A session as it is written down: the same bytes as [`super::image`] reads, from what the session has, without a copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use vidcompat_proto::abi::v4l2::PlanarBuffer;
use vidcompat_proto::queue::{ClientKey, Queue};
use zerocopy::IntoBytes;

use super::image::{
    ClientImage, ExportImage, ExportedPlane, Opening, PlaneImage, ReaderImage, VERSION, WayImage, WriterImage,
};
use crate::client::{Client, Clients};
use crate::memory::{BounceBuffer, Provider};
use crate::resolve::Importer;
use crate::session::adoption::Lent;
use crate::session::ledger::{Done, Entry, Place, UnderWay};
use crate::session::once::Once;
use crate::session::passed::{Imported, Passed};
use crate::session::queues::{QueueState, Slot};
use crate::session::serve::Way;

/// What a session is written down from.
pub(in crate::session) struct View<'a> {
    pub(in crate::session) opening: Opening,
    pub(in crate::session) poll_handle: u64,
    pub(in crate::session) tokens: &'a [(u32, [u8; 16])],
    pub(in crate::session) clients: &'a Clients,
    pub(in crate::session) next_number: u64,
    pub(in crate::session) capture: &'a QueueState,
    pub(in crate::session) output: &'a QueueState,
    pub(in crate::session) event: Option<&'a (u64, Vec<u8>)>,
    pub(in crate::session) reader: ReaderImage,
    pub(in crate::session) writer: WriterImage,
    pub(in crate::session) capabilities: &'a BTreeMap<u32, u32>,
    pub(in crate::session) refuses_heap: bool,
    pub(in crate::session) tickets: &'a [(u32, ExportedPlane)],
    pub(in crate::session) exports: &'a [ExportImage],
    pub(in crate::session) last_ticket: u32,
    pub(in crate::session) once: Option<Once>,
}

impl Serialize for View<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let files = (
            self.event.map(|(by, event)| (*by, Bytes(event))),
            self.reader,
            self.writer,
            self.capabilities,
            self.refuses_heap,
            self.tickets,
            self.exports,
            self.last_ticket,
            self.once,
        );
        (
            VERSION,
            self.poll_handle,
            self.opening,
            self.tokens,
            ClientsView(self),
            self.next_number,
            QueueView::of(self.capture),
            QueueView::of(self.output),
            files,
        )
            .serialize(serializer)
    }
}

/// Bytes as one, which is how a sequence of them looks, too.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Those whose memory stands in buffers, and those that are remembered.
struct ClientsView<'a, 'b>(&'a View<'b>);

impl Serialize for ClientsView<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let View {
            clients,
            capture,
            output,
            ..
        } = self.0;
        let is_remembered =
            |client: &&Arc<Client>| clients.processes().any(|known| known.key() == client.key());
        // A buffer's is mostly the one before it, too.
        let mut forgotten: Vec<&Arc<Client>> = Vec::new();
        for slot in capture.slots.values().chain(output.slots.values()) {
            let client = slot.client.as_ref().filter(|client| !is_remembered(client));
            if let Some(client) = client
                && !forgotten.iter().any(|known| known.key() == client.key())
            {
                forgotten.push(client);
            }
        }
        let images = forgotten
            .into_iter()
            .chain(clients.processes())
            .map(|client| ClientImage {
                key: client.key(),
                pid: client.process().as_raw(),
                identity: client.identity(),
            });
        serializer.collect_seq(images)
    }
}

#[derive(Serialize)]
pub(in crate::session) struct QueueView<'a> {
    core: &'a Queue,
    provider: Option<Provider>,
    importer: Option<Importer>,
    refused: &'a [String],
    slots: SlotsView<'a>,
    passed: Option<PassedView<'a>>,
    lent: LentsView<'a>,
    entries: EntriesView<'a>,
    under_way: Option<UnderWay>,
    done: &'a Option<Done>,
}

impl<'a> QueueView<'a> {
    pub(in crate::session) fn of(queue: &'a QueueState) -> Self {
        Self {
            core: &queue.core,
            provider: queue.provider,
            importer: queue.importer,
            refused: &queue.refused,
            slots: SlotsView(&queue.slots),
            passed: queue.passed.as_ref().map(PassedView::of),
            lent: LentsView(queue.adoption.lent()),
            entries: EntriesView(queue.ledger.entries()),
            under_way: queue.ledger.under_way,
            done: &queue.ledger.done,
        }
    }
}

struct SlotsView<'a>(&'a BTreeMap<u32, Slot>);

impl Serialize for SlotsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(index, slot)| SlotView {
            index: *index,
            planes: slot.planes.as_deref().map(|planes| PlanesView(planes)),
            client: slot.client.as_ref().map(|client| client.key()),
            ways: WaysView(&slot.ways),
        }))
    }
}

#[derive(Serialize)]
struct SlotView<'a> {
    index: u32,
    planes: Option<PlanesView<'a>>,
    client: Option<ClientKey>,
    ways: WaysView<'a>,
}

struct PlanesView<'a>(&'a [BounceBuffer]);

impl Serialize for PlanesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|plane| PlaneImage {
            number: plane.kept_as(),
            size: plane.size() as u64,
            payer: plane.payer(),
            is_handed_out: plane.is_handed_out(),
        }))
    }
}

struct WaysView<'a>(&'a [Arc<Way>]);

impl Serialize for WaysView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|way| WayImage {
            claim: way.claim,
            is_imported: way.is_imported(),
            marks: way.marks(),
        }))
    }
}

struct LentsView<'a>(&'a [Lent]);

impl Serialize for LentsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|lent| {
            (
                lent.client,
                lent.pid,
                lent.client_addr,
                lent.length,
                PlanesView(&lent.buffers),
                u32::try_from(lent.plane).unwrap_or_default(),
                lent.offered.is_some(),
                lent.asked_back,
            )
        }))
    }
}

#[derive(Serialize)]
struct PassedView<'a> {
    memory: u32,
    end: u32,
    names: &'a BTreeMap<u32, u64>,
    imported: ImportedsView<'a>,
}

impl<'a> PassedView<'a> {
    fn of(passed: &'a Passed) -> Self {
        Self {
            memory: passed.memory,
            end: passed.end,
            names: &passed.ids,
            imported: ImportedsView(&passed.imported),
        }
    }
}

struct ImportedsView<'a>(&'a BTreeMap<u32, Imported>);

impl Serialize for ImportedsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(index, imported)| {
            (
                *index,
                imported.prepared,
                ImportedPlanesView(imported),
                imported.request_fd,
            )
        }))
    }
}

struct ImportedPlanesView<'a>(&'a Imported);

impl Serialize for ImportedPlanesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let planes = self.0.planes.iter();
        serializer.collect_seq(planes.map(|plane| (plane.client_fd, plane.our_number())))
    }
}

struct EntriesView<'a>(&'a BTreeMap<u32, Entry>);

impl Serialize for EntriesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(index, entry)| {
            EntryView {
                index: *index,
                place: entry.place,
                given_by: entry.given_by,
                unanswered: entry.unanswered,
                returned: entry
                    .returned
                    .as_ref()
                    .map(|(by, reply)| (*by, BufferView(reply))),
            }
        }))
    }
}

#[derive(Serialize)]
struct EntryView<'a> {
    index: u32,
    place: Place,
    given_by: u64,
    unanswered: bool,
    returned: Option<(u64, BufferView<'a>)>,
}

struct BufferView<'a>(&'a PlanarBuffer);

impl Serialize for BufferView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Bytes(self.0.head.as_bytes()), BufferPlanesView(self.0)).serialize(serializer)
    }
}

struct BufferPlanesView<'a>(&'a PlanarBuffer);

impl Serialize for BufferPlanesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.planes.iter().map(|plane| Bytes(plane.as_bytes())))
    }
}
