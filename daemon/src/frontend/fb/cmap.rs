//! FBIOGETCMAP and FBIOPUTCMAP: a struct with pointers to three or four arrays (fbcmap.c).

use std::sync::{Mutex, TryLockError};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::fb::compat::Cmap32;
use vidcompat_proto::abi::fb::{Cmap, ColorMap};
use zerocopy::IntoBytes;

use super::ioctl::{Areas, Next, Round};
use crate::backend::framebuffer::FramebufferFile;
use crate::client::read_blocked;
use crate::cuse::{ClientArea, MAX_IO};

/// Entries of which all four arrays, and the struct, fit into one request.
const MOST_ENTRIES: u32 = (MAX_IO - 64) / 8;

/// Entries of an array for which the kernel has memory: 4 MiB, the largest kmalloc (`KMALLOC_MAX_SIZE`).
const MOST_ALLOCATED: u32 = 1 << 21;

/// A program whose arrays do not fit into a request is one at a time, for we need as much memory.
static LARGE: Mutex<()> = Mutex::new(());

fn given(round: &Round<'_>) -> Result<Cmap, Errno> {
    match round.abi {
        ClientAbi::Native => round.given(),
        ClientAbi::I386 | ClientAbi::Arm32 => round.given::<Cmap32>().map(Cmap::from),
    }
}

fn array(client_addr: u64, entries: usize) -> ClientArea {
    ClientArea {
        client_addr,
        length: entries as u64 * 2,
    }
}

/// `fb_cmap_to_user`. `areas` is the struct.
pub(super) fn get(behind: &dyn FramebufferFile, round: &Round<'_>, areas: Areas) -> Result<Next, Errno> {
    let [whole] = areas.input.as_slice() else {
        return Err(Errno::EINVAL);
    };
    if round.input.len() as u64 != whole.length {
        return Ok(Next::Again(areas));
    }
    let cmap = given(round)?;
    // More than any colour map has.
    let entries = vec![0; cmap.len.min(MOST_ENTRIES) as usize];
    let mut map = ColorMap {
        start: cmap.start,
        transp: (cmap.arrays[3] != 0).then(|| entries.clone()),
        red: entries.clone(),
        green: entries.clone(),
        blue: entries,
    };
    behind.fbiogetcmap(&mut map)?;
    let filled = [
        Some(&map.red),
        Some(&map.green),
        Some(&map.blue),
        map.transp.as_ref(),
    ];
    let output = filled.into_iter().zip(cmap.arrays);
    let output = output.filter_map(|(entries, client_addr)| Some(array(client_addr, entries?.len())));
    let areas = Areas {
        input: areas.input,
        output: output.collect(),
    };
    if !areas.are_in(round) {
        return Ok(Next::Again(areas));
    }
    let bytes = filled
        .into_iter()
        .flatten()
        .flat_map(|entries| entries.as_bytes());
    Ok(Next::Done(bytes.copied().collect()))
}

/// `fb_set_user_cmap`. `areas` is the struct.
pub(super) fn put(behind: &dyn FramebufferFile, round: &Round<'_>, areas: Areas) -> Result<Next, Errno> {
    let [whole] = areas.input.as_slice() else {
        return Err(Errno::EINVAL);
    };
    let size = usize::try_from(whole.length).unwrap_or(usize::MAX);
    let Some(arrays) = round.input.get(size..) else {
        return Ok(Next::Again(areas));
    };
    let cmap = given(round)?;
    match cmap.len {
        // The size is an int there.
        0x4000_0000.. => return Err(Errno::E2BIG),
        0 => return Err(Errno::EINVAL),
        len if len > MOST_ALLOCATED => return Err(Errno::ENOMEM),
        _ => {}
    }
    let entries = cmap.len as usize;
    let [.., transp] = cmap.arrays;
    let pointers = &cmap.arrays[..if transp == 0 { 3 } else { 4 }];
    let (_alone, fetched);
    let arrays = if cmap.len > MOST_ENTRIES {
        // Not waited for: its memory may be a file system's that never answers.
        _alone = match LARGE.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Errno::ENOMEM),
        };
        fetched = fetch(round.tid, pointers, entries * 2)?;
        &fetched
    } else {
        let each = pointers.iter().map(|client_addr| array(*client_addr, entries));
        let areas = Areas {
            input: areas.input.iter().copied().chain(each).collect(),
            output: Vec::new(),
        };
        if !areas.are_in(round) {
            return Ok(Next::Again(areas));
        }
        arrays
    };
    let mut each = arrays.chunks_exact(entries * 2).map(|bytes| {
        let entry = |bytes: &[u8; 2]| u16::from_ne_bytes(*bytes);
        bytes.as_chunks().0.iter().map(entry).collect()
    });
    let mut next = || each.next().ok_or(Errno::EFAULT);
    let map = ColorMap {
        start: cmap.start,
        red: next()?,
        green: next()?,
        blue: next()?,
        transp: if transp == 0 { None } else { Some(next()?) },
    };
    behind.fbioputcmap(&map)?;
    Ok(Next::Done(Vec::new()))
}

/// Arrays that do not fit into a request.
fn fetch(tid: u32, pointers: &[u64], size: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; pointers.len() * size];
    for (client_addr, array) in pointers.iter().zip(bytes.chunks_exact_mut(size)) {
        read_blocked(tid, *client_addr, array).map_err(|_| Errno::EFAULT)?;
    }
    Ok(bytes)
}
