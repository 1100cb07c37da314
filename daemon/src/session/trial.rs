//! Trying whether the device imports what a provider has made, before the client hears of success: a driver does not say.
//! Nothing is streaming or queued at that time, so nobody can notice.

use vidcompat_proto::abi::v4l2::{PlanarBuffer, buf_type};
use vidcompat_proto::ioctl::{QueueOp, queue_row};
use vidcompat_proto::queue::Backing;

use super::Session;
use super::allocate::Unserved;
use super::queues::{QueueState, Slot};

/// `V4L2_FIELD_TOP` and `V4L2_FIELD_ALTERNATE`
const FIELD_TOP: u32 = 2;
const FIELD_ALTERNATE: u32 = 7;

impl Session {
    /// Gives each imported buffer to the device once and takes all back.
    pub(super) fn try_import(&self, queue: &QueueState, buf_type: u32) -> Result<(), Unserved> {
        let imported = |slot: &Slot| {
            let planes = slot.planes.as_ref();
            planes.is_some_and(|planes| planes.iter().any(|plane| plane.dma_buf().is_some()))
        };
        if !queue.slots.values().any(imported) {
            return Ok(());
        }
        let prepare = if self.device.knows(&self.node, queue_row(QueueOp::PrepareBuf)) {
            QueueOp::PrepareBuf
        } else {
            QueueOp::Qbuf
        };
        for (index, slot) in queue.slots.iter() {
            let mut given = self.trial(buf_type, *index, slot)?;
            self.node
                .buffer_ioctl(prepare, &mut given)
                .map_err(Unserved::Refused)?;
        }
        self.node
            .stream(QueueOp::Streamoff, buf_type)
            .map_err(Unserved::Refused)
    }

    /// What a driver accepts of a client that does everything right.
    fn trial(&self, buf_type: u32, index: u32, slot: &Slot) -> Result<PlanarBuffer, Unserved> {
        let described = self.query(buf_type, index).map_err(Unserved::Refused)?;
        let mut blank = PlanarBuffer::blank(buf_type, index);
        let backing = slot.bounce();
        if buf_type::is_multi_planar(buf_type) {
            blank.planes.truncate(backing.len());
        }
        if matches!(buf_type, buf_type::VIDEO_OUTPUT | buf_type::VIDEO_OUTPUT_MPLANE) {
            let field = self.node.field(buf_type).unwrap_or_default();
            blank.head.field = if field == FIELD_ALTERNATE {
                FIELD_TOP
            } else {
                field
            };
        }
        let mut given = Backing::give(&backing, &blank);
        if buf_type::is_output(buf_type) {
            // Not the dma-buf's length, which is whole pages: a single-planar queue compares with its own
            // (videobuf2-v4l2.c:117).
            for (plane, described) in given.planes.iter_mut().zip(described.described()) {
                plane.bytesused = described.length;
            }
        }
        Ok(given)
    }
}
