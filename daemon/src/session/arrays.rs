//! Ioctls whose struct points to an array: in from the client's memory, out to it, as `video_usercopy` does it
//! (v4l2-ioctl.c), with the driver seeing memory of ours.

use vidcompat_proto::Errno;
use vidcompat_proto::ioctl::{Array, Row};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::client::BlockedThread;

use super::{Requester, Session};

impl Session {
    /// An array of plain bytes (EDID blocks).
    pub(super) fn array_ioctl(&self, row: &Row, argument: &mut [u8], who: Requester) -> Result<i32, Errno> {
        let array = row.array.ok_or(Errno::ENOTTY)?;
        self.with_array(array, argument, who, |argument, bytes: &mut [u8], _| {
            self.node.array_ioctl(row, argument, bytes)
        })
    }

    /// Lets `act` have the array of elements `T` that `argument` announces, and the client, if there is an array.
    /// Afterwards the array is the client's again, and so is the pointer in `argument`.
    ///
    /// # Errors
    /// What `act` says; `EFAULT` for an array that cannot be read, or written back; the row's errno for too many
    /// elements. On an error, too, the array is written back as `act` left it (`INFO_FL_ALWAYS_COPY`), unless the device
    /// does not know the ioctl.
    pub(super) fn with_array<T: FromBytes + IntoBytes + Immutable + Clone>(
        &self,
        place: Array,
        argument: &mut [u8],
        who: Requester,
        act: impl FnOnce(&mut [u8], &mut [T], Option<&BlockedThread>) -> Result<i32, Errno>,
    ) -> Result<i32, Errno> {
        let len = place.len(argument)?;
        let pointer = argument
            .get(place.pointer_bytes())
            .and_then(|raw| raw.first_chunk::<8>())
            .copied()
            .ok_or(Errno::ENOTTY)?;
        let client_addr = u64::from_ne_bytes(pointer);
        let mut array = vec![T::new_zeroed(); len / size_of::<T>()];
        let caller = match len {
            0 => None,
            _ => Some(self.caller(who.tid)?),
        };
        if let Some(caller) = &caller {
            caller
                .read(client_addr, array.as_mut_bytes())
                .map_err(|_| Errno::EFAULT)?;
        }
        let mut outcome = act(argument, &mut array, caller.as_ref());
        argument[place.pointer_bytes()].copy_from_slice(&pointer);
        if let Some(caller) = &caller
            && outcome != Err(Errno::ENOTTY)
            && caller.write(client_addr, array.as_bytes()).is_err()
        {
            outcome = Err(Errno::EFAULT);
        }
        outcome
    }
}
