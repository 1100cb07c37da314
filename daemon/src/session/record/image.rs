//! What is written down of a session, as the next daemon reads it. [`super::view`] writes the same, field by field in this
//! order, without a copy of what the session has.
//!
//! Every change here is another [`VERSION`].

use serde::{Deserialize, Serialize};
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Buffer, V4l2Plane};
use vidcompat_proto::queue::{Claim, ClientKey, Queue};
use zerocopy::FromBytes;

use crate::client::Identity;
use crate::memory::Provider;
use crate::resolve::Importer;
use crate::session::ledger::{Done, Place, UnderWay};
use crate::session::once::Once;
use crate::session::proof::Mark;

/// Of what follows.
pub(in crate::session) const VERSION: u32 = 3;
/// Of a record that says only whom to tell: what would have followed could not be written.
pub(in crate::session) const UNWRITTEN: u32 = 0;

/// How the file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Flags of open(2).
    pub flags: i32,
    /// Who opened it.
    pub uid: u32,
    /// The request that did.
    pub by: u64,
}

/// A process whose memory stands in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct ClientImage {
    pub(in crate::session) key: ClientKey,
    pub(in crate::session) pid: i32,
    pub(in crate::session) identity: Identity,
}

/// A plane of our memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct PlaneImage {
    /// Its number in the store; `None`: it is the device's own, and mapped.
    pub(in crate::session) number: Option<u64>,
    pub(in crate::session) size: u64,
    pub(in crate::session) payer: Option<i32>,
    pub(in crate::session) is_handed_out: bool,
}

/// How a plane of the client's memory is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct WayImage {
    pub(in crate::session) claim: Claim,
    pub(in crate::session) is_imported: bool,
    /// Words of ours in it.
    pub(in crate::session) marks: Vec<Mark>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct SlotImage {
    pub(in crate::session) index: u32,
    pub(in crate::session) planes: Option<Vec<PlaneImage>>,
    pub(in crate::session) client: Option<ClientKey>,
    pub(in crate::session) ways: Vec<WayImage>,
}

/// Head and planes, as the kernel has them.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct BufferImage {
    head: Vec<u8>,
    planes: Vec<Vec<u8>>,
}

impl BufferImage {
    pub(in crate::session) fn buffer(&self) -> Option<PlanarBuffer> {
        let plane = |bytes: &Vec<u8>| V4l2Plane::read_from_bytes(bytes).ok();
        Some(PlanarBuffer {
            head: V4l2Buffer::read_from_bytes(&self.head).ok()?,
            planes: self.planes.iter().map(plane).collect::<Option<_>>()?,
        })
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct EntryImage {
    pub(in crate::session) index: u32,
    pub(in crate::session) place: Place,
    pub(in crate::session) given_by: u64,
    pub(in crate::session) unanswered: bool,
    pub(in crate::session) returned: Option<(u64, BufferImage)>,
}

/// Memory of ours in a client's address space.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct LentImage {
    pub(in crate::session) client: ClientKey,
    pub(in crate::session) pid: i32,
    pub(in crate::session) client_addr: u64,
    pub(in crate::session) length: u64,
    pub(in crate::session) planes: Vec<PlaneImage>,
    pub(in crate::session) plane: u32,
    pub(in crate::session) is_offered: bool,
    pub(in crate::session) asked_back: bool,
}

/// A dma-buf that the client has given.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct ImportedImage {
    pub(in crate::session) index: u32,
    pub(in crate::session) is_prepared: bool,
    /// The client's number, and what was ours.
    pub(in crate::session) planes: Vec<(u32, Option<u32>)>,
    pub(in crate::session) request_fd: u32,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::session) struct PassedImage {
    pub(in crate::session) memory: u32,
    pub(in crate::session) end: u32,
    /// Names of the device's own buffers, by index.
    pub(in crate::session) names: Vec<(u32, u64)>,
    pub(in crate::session) imported: Vec<ImportedImage>,
}

#[derive(Debug, Deserialize)]
pub(in crate::session) struct QueueImage {
    pub(in crate::session) core: Queue,
    pub(in crate::session) provider: Option<Provider>,
    pub(in crate::session) importer: Option<Importer>,
    pub(in crate::session) refused: Vec<String>,
    pub(in crate::session) slots: Vec<SlotImage>,
    pub(in crate::session) passed: Option<PassedImage>,
    pub(in crate::session) lent: Vec<LentImage>,
    pub(in crate::session) entries: Vec<EntryImage>,
    pub(in crate::session) under_way: Option<UnderWay>,
    pub(in crate::session) done: Option<Done>,
}

/// A buffer of the device's own that a client has mapped, by what its mapping shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct ExportImage {
    pub(in crate::session) st_dev: u64,
    pub(in crate::session) inode: u64,
    pub(in crate::session) exporter: String,
    pub(in crate::session) what: ExportedPlane,
    pub(in crate::session) name: u64,
}

/// What EXPBUF is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct ExportedPlane {
    pub(in crate::session) buf_type: u32,
    pub(in crate::session) index: u32,
    pub(in crate::session) plane: u32,
    pub(in crate::session) flags: u32,
}

/// A piece of a read(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct PieceImage {
    pub(in crate::session) by: u64,
    pub(in crate::session) from: u64,
    pub(in crate::session) len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct ReaderImage {
    /// Bytes that the frame's memory has room for, and who pays; `None`: there is no frame.
    pub(in crate::session) room: Option<(u64, Option<i32>)>,
    pub(in crate::session) filled: u64,
    pub(in crate::session) taken: u64,
    pub(in crate::session) last: Option<PieceImage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::session) struct WriterImage {
    pub(in crate::session) frame: Option<u64>,
    pub(in crate::session) written: u64,
    pub(in crate::session) ended: bool,
    /// The piece that the driver is being given.
    pub(in crate::session) begun: Option<u64>,
    /// The last piece, and what it was answered.
    pub(in crate::session) last: Option<(u64, u32)>,
}

/// All of it, behind the version and [`poll_handle`].
#[derive(Debug, Deserialize)]
pub(in crate::session) struct Image {
    pub(in crate::session) opening: Opening,
    /// The shim's, by user.
    pub(in crate::session) tokens: Vec<(u32, [u8; 16])>,
    pub(in crate::session) clients: Vec<ClientImage>,
    pub(in crate::session) next_number: u64,
    pub(in crate::session) capture: QueueImage,
    pub(in crate::session) output: QueueImage,
    /// The last DQEVENT and what it got.
    pub(in crate::session) event: Option<(u64, Vec<u8>)>,
    pub(in crate::session) reader: ReaderImage,
    pub(in crate::session) writer: WriterImage,
    /// `V4L2_BUF_CAP_*` by buffer type: of a file with buffers nobody may ask.
    pub(in crate::session) capabilities: Vec<(u32, u32)>,
    pub(in crate::session) refuses_heap: bool,
    /// What EXPBUF has left for the shim, by ticket.
    pub(in crate::session) tickets: Vec<(u32, ExportedPlane)>,
    pub(in crate::session) exports: Vec<ExportImage>,
    /// The last ticket's number.
    pub(in crate::session) last_ticket: u32,
    pub(in crate::session) once: Option<Once>,
}

/// Whom to tell of readiness; 0: nobody has ever polled. Behind the version, and the same in all of them: who sleeps in poll(2)
/// is to be told also by a daemon that cannot read the rest.
pub(in crate::session) fn poll_handle(bytes: &[u8]) -> Option<u64> {
    let (_, rest) = postcard::take_from_bytes::<u32>(bytes).ok()?;
    Some(postcard::take_from_bytes(rest).ok()?.0)
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another vidcompatd wrote something else.
    #[error("its record has version {0}, and this vidcompatd reads {VERSION}")]
    Version(u32),
    /// There was no room, or no memory.
    #[error("what the daemon before us did last could not be written down")]
    Unwritten,
    /// Not what was written.
    #[error("its record cannot be read: {0}")]
    Spoilt(String),
    /// A file.
    #[error("{0} is not in the store")]
    Missing(String),
    /// Itself.
    #[error(
        "vidcompatd has ended again and again when it was taken up; please report this, with what the log says of the ends"
    )]
    Deadly,
    /// The device.
    #[error("its device does not go on with it: {0}")]
    Device(String),
}

impl Image {
    /// Reads what [`super::view`] has written.
    ///
    /// # Errors
    /// See [`Lost`].
    pub(in crate::session) fn read(bytes: &[u8]) -> Result<Self, Lost> {
        let spoilt = |error: postcard::Error| Lost::Spoilt(error.to_string());
        let (version, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(spoilt)?;
        match version {
            VERSION => {
                let (_, rest) = postcard::take_from_bytes::<u64>(rest).map_err(spoilt)?;
                postcard::from_bytes(rest).map_err(spoilt)
            }
            UNWRITTEN => Err(Lost::Unwritten),
            _ => Err(Lost::Version(version)),
        }
    }
}
