//! Adoption: the dma-buf takes the place of the program's pages, contents kept, while other threads use them.
//!
//! 1. The dma-buf is mapped twice elsewhere: as *alias*, which stays, and as *spare*, which will be put in place.
//! 2. The program's stretch is registered with a userfaultfd, and its pages are taken away to *kept* (mremap with
//!    MREMAP_DONTUNMAP, one step for all threads). Who touches the stretch now waits.
//! 3. The contents are copied from *kept* to *alias*.
//! 4. The spare moves over the stretch, again one step, and who waits goes on, in the dma-buf.
//!
//! Until step 4 has succeeded *kept* is put back over the stretch if anything fails, and nothing has happened.
//! *Kept* loses its pages and stays as well: it is a piece of the program's own mapping, with its advice, policy and
//! name, and when it goes back to its place one day, it grows together with what is left of that mapping on both sides.
//! So mremap over all of it works as ever, and no mapping is left behind.
//!
//! Not seen by any of this: whoever in the kernel holds the pages themselves. O_DIRECT or io_uring under way into the very
//! buffer ends in the old pages and is lost, and so is all that a device does for which the program has registered the
//! memory for good (io_uring's buffers, a GPU, RDMA, a node of another driver with USERPTR).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, Result};
use rustix::ioctl::opcode::write;
use vidcompat_proto::shim::Outcome;

use super::fault::Fault;
use super::maps;
use super::sys::{self, Mapping, Stretch};
use super::table::Adopted;

/// Puts `file`, a dma-buf, in the place of `stretch`.
///
/// # Errors
/// Why not; then the stretch is as it was.
pub(super) fn adopt(stretch: Stretch, file: &OwnedFd) -> std::result::Result<Adopted, Outcome> {
    let page = sys::page_bytes();
    let whole = stretch.start % page == 0 && stretch.len % page == 0 && stretch.len > 0;
    if !whole || stretch.start.checked_add(stretch.len).is_none() {
        return Err(Outcome::NotOrdinary);
    }
    let large_enough = seek(file, SeekFrom::End(0)).is_ok_and(|bytes| bytes >= stretch.len as u64);
    if !large_enough {
        return Err(Outcome::Refused);
    }
    let alias = Mapping::of_file(file, stretch.len).map_err(refused)?;
    let spare = Mapping::of_file(file, stretch.len).map_err(refused)?;
    let object = maps::ordinary_and_object(stretch, alias.stretch()).ok_or(Outcome::NotOrdinary)?;
    let fault = Fault::new().map_err(no_fault)?;
    fault.register(stretch).map_err(refused)?;
    // ENOTTY says that it is no dma-buf.
    let taken = sync(file, START).and_then(|()| {
        Mapping::taken_from(stretch).inspect_err(|_| {
            let _ = sync(file, END);
        })
    });
    let kept = taken.map_err(|_| {
        let _ = fault.unregister(stretch);
        Outcome::Refused
    })?;
    kept.copy_to(&alias);
    let _ = sync(file, END);
    if let Err(spare) = spare.over(stretch) {
        drop((spare, alias));
        put_back(kept, stretch, &fault);
        return Err(Outcome::Refused);
    }
    fault.wake(stretch);
    // If it cannot, that costs memory: giving back sees to it again.
    let _ = kept.discard();
    Ok(Adopted {
        stretch,
        alias,
        kept,
        object,
    })
}

fn refused(_: Errno) -> Outcome {
    Outcome::Refused
}

fn no_fault(error: Errno) -> Outcome {
    match error {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Outcome::Refused,
        _ => Outcome::NoUserfault,
    }
}

/// The pages go back to where they were: moved; or, where the program's other threads have used up the number of
/// mappings meanwhile, copied. Neither leaves a moment in which the stretch could be seen empty.
fn put_back(kept: Mapping, stretch: Stretch, fault: &Fault) {
    let (mut kept, mut rest) = (kept, stretch);
    loop {
        kept = match kept.over(rest) {
            Ok(()) => break,
            Err(kept) => kept,
        };
        let done = match fault.fill(rest, &kept, 0) {
            Ok(()) => break,
            // The program has just unmapped this page: it is not ours to fill.
            Err((filled, Errno::NOENT | Errno::EXIST)) => filled + sys::page_bytes(),
            // No memory: the next time there may be. What is filled is the program's again, and not to be moved over.
            Err((filled, _)) => filled,
        };
        let (_, Some(behind)) = kept.split(done) else {
            break;
        };
        kept = behind;
        rest = Stretch {
            start: rest.start + done,
            len: rest.len - done,
        };
        rustix::thread::sched_yield();
    }
    let _ = fault.unregister(stretch);
    fault.wake(stretch);
}

/// `DMA_BUF_IOCTL_SYNC` and its flags (linux/dma-buf.h): for reading and writing.
const START: u64 = 3;
const END: u64 = 3 | 4;

fn sync(file: &OwnedFd, flags: u64) -> Result<()> {
    loop {
        let mut flags = flags;
        match sys::update::<{ write::<u64>(b'b', 0) }, _>(file.as_fd(), &mut flags) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            result => return result,
        }
    }
}
