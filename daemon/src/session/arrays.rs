//! Ioctls whose struct points to an array: in from the client's memory, out to it, as `video_usercopy` does it
//! (v4l2-ioctl.c), with the driver seeing memory of ours.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
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

    /// A format, which in an overlay window may have a list of clips (`struct v4l2_clip`: a rectangle of 16 bytes, and a
    /// pointer that is the client's own business). Newer kernels do not look at it; where it cannot be read the pointer
    /// is NULL, and an older one says EFAULT.
    pub(super) fn window_ioctl(&self, row: &Row, argument: &mut [u8], who: Requester) -> Result<i32, Errno> {
        const RECTANGLE: usize = 16;
        let place = row.array.ok_or(Errno::ENOTTY)?;
        let count = place.len(argument).unwrap_or(0) / place.element;
        let pointer = argument.get(place.pointer_bytes()).map(<[u8]>::to_vec);
        let (Some(pointer), true) = (pointer, count > 0) else {
            return self.node.ioctl(row, argument);
        };
        let client_addr = pointer
            .first_chunk::<8>()
            .map_or(0, |raw| u64::from_ne_bytes(*raw));
        let element = match who.abi {
            ClientAbi::Native => place.element,
            ClientAbi::I386 | ClientAbi::Arm32 => RECTANGLE + 4,
        };
        let caller = self.caller(who.tid)?;
        let mut theirs = vec![0; count * element];
        if caller.read(client_addr, &mut theirs).is_err() {
            return self.node.ioctl(row, argument);
        }
        let mut clips = vec![0; count * place.element];
        for (clip, theirs) in clips
            .chunks_exact_mut(place.element)
            .zip(theirs.chunks_exact(element))
        {
            clip[..RECTANGLE].copy_from_slice(&theirs[..RECTANGLE]);
        }
        self.node.array_ioctl(row, argument, &mut clips)?;
        if place.len(argument) == Ok(0) {
            // The kernel has no clips.
            return Ok(0);
        }
        argument[place.pointer_bytes()].copy_from_slice(&pointer);
        for (theirs, clip) in theirs
            .chunks_exact_mut(element)
            .zip(clips.chunks_exact(place.element))
        {
            theirs[..RECTANGLE].copy_from_slice(&clip[..RECTANGLE]);
        }
        caller.write(client_addr, &theirs).map_err(|_| Errno::EFAULT)?;
        Ok(0)
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
