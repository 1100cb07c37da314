//! EDID of an HDMI input: an array of blocks that the kernel copies both ways, whichever way the call goes.

use std::fmt::Write;

use anyhow::ensure;

use crate::daemon::{self, Daemon};
use crate::report::{figure, same};
use crate::setup::{HDMI, Test, VMALLOC};
use crate::sys::{self, Access, PAGE, Pages};
use crate::video::{Node, real};

pub const TESTS: &[(&str, Test)] = &[
    ("edid::blocks_are_got_and_set_as_on_the_real_node", hdmi),
    ("edid::of_a_webcam_there_is_none", webcam),
];

const G: u64 = 0xc028_5628;
const S: u64 = 0xc028_5629;
const BLOCK: usize = 128;
/// Where the blocks are; the struct is in the first page.
const BLOCKS: usize = PAGE;
const FILL: u8 = 0xa5;

/// `struct v4l2_edid` and its blocks, as a client gives them.
#[derive(Clone, Debug)]
struct Given {
    pad: u32,
    start: u32,
    count: u32,
    blocks: Vec<u8>,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// In good memory.
    Good,
    /// 200 bytes before memory of which this is true.
    Before(Hurt),
    /// At this address.
    At(u64),
}

#[derive(Clone, Copy, Debug)]
enum Hurt {
    ReadOnly,
    NoAccess,
    Unmapped,
}

fn play(node: Node, command: u64, given: &Given) -> anyhow::Result<String> {
    let video = node.open()?;
    let pages = Pages::new(40 * PAGE)?;
    pages.write(0, &vec![FILL; pages.len()])?;
    let at = match given.place {
        Place::Before(_) => 2 * PAGE - 200,
        _ => BLOCKS,
    };
    pages.write(at, &given.blocks)?;
    for (offset, value) in [(0, given.pad), (4, given.start), (8, given.count)] {
        pages.write(offset, &value.to_ne_bytes())?;
    }
    let pointer = match given.place {
        Place::At(pointer) => pointer,
        _ => pages.at(at),
    };
    pages.write(32, &pointer.to_ne_bytes())?;
    let rest = 38 * PAGE;
    match given.place {
        Place::Before(Hurt::ReadOnly) => pages.protect(2 * PAGE, rest, Access::ReadOnly)?,
        Place::Before(Hurt::NoAccess) => pages.protect(2 * PAGE, rest, Access::None)?,
        Place::Before(Hurt::Unmapped) => pages.unmap(2 * PAGE, rest),
        Place::Good | Place::At(_) => {}
    }
    let mut text = format!("{:?}", sys::ioctl_in(&video, command, &pages, 0));
    let raw = pages.read(0, 40)?;
    let same_pointer = raw[32..] == pointer.to_ne_bytes();
    write!(text, " {:x?} its pointer: {same_pointer}, blocks:", &raw[..32])?;
    for page in 1..40 {
        match pages.read(page * PAGE, PAGE) {
            Err(_) => text.push('-'),
            Ok(bytes) => {
                let (first, last) = (
                    bytes.iter().position(|byte| *byte != FILL),
                    bytes.iter().rposition(|byte| *byte != FILL),
                );
                if let (Some(first), Some(last)) = (first, last) {
                    write!(text, " {page}:{first}+{:x?}", &bytes[first..=last])?;
                }
            }
        }
    }
    Ok(text)
}

fn given(start: u32, count: u32, blocks: Vec<u8>) -> Given {
    Given {
        pad: 0,
        start,
        count,
        blocks,
        place: Place::Good,
    }
}

/// Calls with `edid`, which the device takes, in it.
fn cases(edid: &[u8]) -> Vec<(u64, Given)> {
    let mut calls = Vec::new();
    for start in [0, 1, 2, u32::MAX] {
        for count in [0, 1, 2, 3, 4, 255, 256, 257, 0x0200_0001, u32::MAX] {
            calls.push(given(start, count, Vec::new()));
            calls.push(given(start, count, edid.to_vec()));
        }
    }
    for pad in [1, u32::MAX] {
        calls.push(Given {
            pad,
            ..given(0, 2, edid.to_vec())
        });
    }
    for pointer in [0, 1, 0xffff_8000_0000_0000, u64::MAX - 10] {
        for count in [0, 1, 257] {
            calls.push(Given {
                place: Place::At(pointer),
                ..given(0, count, Vec::new())
            });
        }
    }
    for hurt in [Hurt::ReadOnly, Hurt::NoAccess, Hurt::Unmapped] {
        for count in [1, 2, 256] {
            calls.push(Given {
                place: Place::Before(hurt),
                ..given(0, count, edid.to_vec())
            });
        }
    }
    calls
        .into_iter()
        .flat_map(|call| [(G, call.clone()), (S, call)])
        .collect()
}

/// The EDID that the device has.
fn current(number: u32) -> anyhow::Result<Vec<u8>> {
    let video = real(number).open()?;
    let pages = Pages::new(2 * PAGE)?;
    pages.write(8, &2u32.to_ne_bytes())?;
    pages.write(32, &pages.at(BLOCKS).to_ne_bytes())?;
    sys::ioctl_in(&video, G, &pages, 0)?;
    pages.read(BLOCKS, 2 * BLOCK)
}

fn hdmi() -> anyhow::Result<()> {
    let path = real(HDMI).to_string();
    let daemon = Daemon::start(&["--device", &path])?;
    let edid = current(HDMI)?;
    ensure!(edid.iter().any(|byte| *byte != 0), "an empty EDID");
    // Another name of the monitor: vivid looks at the address in it only.
    let mut other = edid.clone();
    other[100] ^= 0x15;
    let reset = given(0, 2, edid.clone());
    let lines = same(HDMI, |node| {
        cases(&other)
            .iter()
            .map(|(command, call)| {
                play(real(HDMI), S, &reset)?;
                let told = play(node, *command, call)?;
                let place = call.place;
                let after = play(real(HDMI), G, &given(0, 2, Vec::new()))?;
                let name = if *command == G { "G" } else { "S" };
                let Given {
                    pad, start, count, ..
                } = call;
                Ok(format!(
                    "{name} {count} from {start} of {pad} {place:?}: {told}, then {after}"
                ))
            })
            .collect()
    });
    play(real(HDMI), S, &reset)?;
    drop(daemon);
    let lines = lines?;
    let good = lines.iter().filter(|line| line.contains(": Ok(0)")).count();
    figure(format!("EDID: {} calls, {good} of them succeed", lines.len()));
    for begin in [
        "S 2 from 0 of 0 Good: Ok(0)",
        "G 2 from 0 of 0 Before(ReadOnly): Err(EFAULT)",
        "S 256 from 0 of 0 Good: Err(E2BIG)",
        "S 257 from 0 of 0 Good: Err(EINVAL)",
    ] {
        ensure!(
            lines.iter().any(|line| line.starts_with(begin)),
            "no line begins with {begin:?}"
        );
    }
    Ok(())
}

fn webcam() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        cases(&[1; 256])
            .iter()
            .map(|(command, call)| Ok(format!("{command:#x} {call:?}: {}", play(node, *command, call)?)))
            .collect()
    })?;
    Ok(())
}
