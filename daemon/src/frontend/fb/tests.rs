//! Ioctls of a program that is plain bytes: the test is the kernel, and copies what is asked for.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::fb::{Cmap, ColorMap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank};
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::fbdev::{self, ROWS};
use vidcompat_proto::shim::FBIOGET_DMABUF;
use zerocopy::{FromBytes, IntoBytes};

use super::file::FbFile;
use super::ioctl::{Next, Round, fbio};
use super::keep::Opening;
use super::position::CallId;
use crate::backend::framebuffer::FramebufferFile;
use crate::cuse::ClientArea;

/// A framebuffer that notes what it was told.
#[derive(Default)]
struct Fake {
    told: Arc<Mutex<Vec<String>>>,
    needs_crtc: bool,
    no_compat: bool,
}

impl Fake {
    fn note(&self, what: String) -> Result<(), Errno> {
        self.told.lock().expect("no panic under it").push(what);
        Ok(())
    }
}

/// Its colour map has as many entries.
const COLORS: usize = 16;

impl FramebufferFile for Fake {
    fn fbioget_vscreeninfo(&self) -> Result<VarScreenInfo, Errno> {
        Ok(VarScreenInfo {
            xres: 640,
            ..VarScreenInfo::default()
        })
    }
    fn fbioput_vscreeninfo(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        var.yres += 1;
        self.note(format!("put {}", var.xres))
    }
    fn fbioget_fscreeninfo(&self) -> Result<FixScreenInfo, Errno> {
        Ok(FixScreenInfo {
            smem_start: 0x1_2345_6789,
            line_length: 77,
            accel: 5,
            ..FixScreenInfo::default()
        })
    }
    fn fbiogetcmap(&self, map: &mut ColorMap) -> Result<(), Errno> {
        let count = map.red.len().min(COLORS);
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        for (array, value) in [(&mut map.red, 1), (&mut map.green, 2), (&mut map.blue, 3)] {
            *array = vec![value; count];
        }
        map.transp = None;
        Ok(())
    }
    fn fbioputcmap(&self, map: &ColorMap) -> Result<(), Errno> {
        self.note(format!(
            "cmap {}+{} {:?}",
            map.start,
            map.red.len(),
            (
                map.red[0],
                map.green[0],
                map.blue[0],
                map.transp.as_ref().map(|map| map[0])
            )
        ))
    }
    fn fbiopan_display(&self, var: &mut VarScreenInfo) -> Result<(), Errno> {
        self.note(format!("pan {}", var.yoffset))
    }
    fn fbioblank(&self, level: u32) -> Result<(), Errno> {
        self.note(format!("blank {level}"))
    }
    fn fbioget_vblank(&self) -> Result<Vblank, Errno> {
        Ok(Vblank::default())
    }
    fn needs_crtc(&self) -> bool {
        self.needs_crtc
    }
    fn has_compat_ioctl(&self) -> bool {
        !self.no_compat
    }
    fn fbio_waitforvsync(&self, crtc: u32) -> Result<(), Errno> {
        self.note(format!("wait {crtc}"))
    }
    fn fbioget_con2fbmap(&self, map: &mut Con2FbMap) -> Result<(), Errno> {
        map.framebuffer = 3;
        Ok(())
    }
    fn fbioput_con2fbmap(&self, map: &Con2FbMap) -> Result<(), Errno> {
        self.note(format!("con2fb {} {}", map.console, map.framebuffer))
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    fn map(&self, _: u64, _: u64, _: u32, _: u32) -> Result<(OwnedFd, u64), Errno> {
        Err(Errno::ENODEV)
    }
    fn dma_buf(&self) -> Result<OwnedFd, Errno> {
        Ok(std::fs::File::open("/dev/null").expect("a null device").into())
    }
}

/// Where the program's memory begins. It ends somewhere, too.
const BASE: u64 = 0x1000;

fn size(area: &ClientArea) -> usize {
    usize::try_from(area.length).expect("a size")
}

struct Program {
    memory: Vec<u8>,
    abi: ClientAbi,
    has_shim: bool,
    rounds: usize,
}

impl Program {
    fn new(abi: ClientAbi) -> Self {
        Self {
            memory: vec![0xa5; 0x4000],
            abi,
            has_shim: false,
            rounds: 0,
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn area(&mut self, client_addr: u64, length: u64) -> Option<&mut [u8]> {
        let from = usize::try_from(client_addr.checked_sub(BASE)?).ok()?;
        let to = from.checked_add(usize::try_from(length).ok()?)?;
        self.memory.get_mut(from..to)
    }

    /// As `fuse_do_ioctl` does it.
    fn call(&mut self, file: &FbFile, command: Command, client_arg: u64) -> Result<(), Errno> {
        let row = fbdev::lookup(self.abi, command).ok_or(Errno::ENOTTY)?;
        let (mut input, mut output) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            self.rounds += 1;
            let round = Round {
                // Nobody.
                tid: u32::MAX,
                abi: self.abi,
                client_arg,
                input: &input,
                out_size: output.iter().map(size).sum(),
                has_shim: self.has_shim,
                call: CallId {
                    unique: 4,
                    is_resent: false,
                },
            };
            match fbio(file, row, &round)? {
                Next::Done(bytes) => {
                    let mut rest = &bytes[..];
                    for area in output {
                        let (now, later) = rest.split_at(rest.len().min(size(&area)));
                        let to = self.area(area.client_addr, area.length).ok_or(Errno::EFAULT)?;
                        to[..now.len()].copy_from_slice(now);
                        rest = later;
                    }
                    assert!(rest.is_empty(), "more than was asked for is EIO");
                    return Ok(());
                }
                Next::Again(areas) => {
                    input = Vec::new();
                    for area in areas.input {
                        input.extend(&*self.area(area.client_addr, area.length).ok_or(Errno::EFAULT)?);
                    }
                    output = areas.output;
                }
            }
        }
        panic!("rounds without end");
    }
}

fn file(fake: Fake) -> (Arc<FbFile>, Arc<Mutex<Vec<String>>>) {
    let told = Arc::clone(&fake.told);
    let opening = Opening {
        uid: 0,
        flags: libc::O_RDWR,
        by: 2,
    };
    (FbFile::new(Box::new(fake), opening, 1, None), told)
}

fn told(told: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut told.lock().expect("no panic under it"))
}

fn cmap(start: u32, len: u32, arrays: [u64; 4]) -> Vec<u8> {
    Cmap { start, len, arrays }.as_bytes().to_vec()
}

#[test]
fn structs_come_and_go() {
    let (file, notes) = file(Fake::default());
    let mut program = Program::new(ClientAbi::Native);
    assert_eq!(program.call(&file, Command(0x4600), BASE), Ok(()));
    let mut var = VarScreenInfo::read_from_prefix(&program.memory)
        .expect("a struct")
        .0;
    assert_eq!((var.xres, var.yres, program.memory[160]), (640, 0, 0xa5));
    var.xres = 800;
    program.put(8, var.as_bytes());
    assert_eq!(program.call(&file, Command(0x4601), BASE + 8), Ok(()));
    let back = VarScreenInfo::read_from_prefix(&program.memory[8..])
        .expect("a struct")
        .0;
    assert_eq!((back.xres, back.yres), (800, 1));
    var.yoffset = 9;
    program.put(0, var.as_bytes());
    assert_eq!(program.call(&file, Command(0x4606), BASE), Ok(()));
    assert_eq!(told(&notes), ["put 800", "pan 9"]);
    assert_eq!(program.rounds, 6, "two rounds each");
}

#[test]
fn what_is_not_there_is_efault_and_nothing_is_done() {
    let (file, notes) = file(Fake::default());
    for row in ROWS.iter().filter(|row| row.size > 0 && !row.is_drivers) {
        let mut program = Program::new(ClientAbi::Native);
        let end = BASE + program.memory.len() as u64;
        for client_arg in [0, u64::MAX, end, end - row.size as u64 + 1] {
            let outcome = program.call(&file, row.command, client_arg);
            assert_eq!(outcome, Err(Errno::EFAULT), "{} {client_arg:#x}", row.name);
        }
    }
    assert_eq!(told(&notes), [""; 0]);
}

#[test]
fn a_32_bit_program_has_its_own_fix_and_what_lies_between_is_left_alone() {
    let (file, _) = file(Fake::default());
    let mut program = Program::new(ClientAbi::COMPAT);
    assert_eq!(program.call(&file, Command(0x4602), BASE), Ok(()));
    let memory = &program.memory;
    assert_eq!(memory[16..20], 0x2345_6789_u32.to_ne_bytes());
    assert_eq!((memory[44], memory[56]), (77, 5));
    let untouched: Vec<usize> = (0..80).filter(|at| memory[*at] == 0xa5).collect();
    assert_eq!(untouched, [42, 43].into_iter().chain(64..80).collect::<Vec<_>>());
}

#[test]
fn a_colour_map_is_fetched_array_by_array() {
    let (file, notes) = file(Fake::default());
    let mut program = Program::new(ClientAbi::Native);
    for (at, value) in [(0x1000, 10), (0x1100, 20), (0x1200, 30), (0x1300, 40)] {
        program.put(at, &[value, 0]);
    }
    let arrays = [BASE + 0x1000, BASE + 0x1100, BASE + 0x1200, BASE + 0x1300];
    let with = |length, arrays| cmap(4, length, arrays);
    program.put(0, &with(8, arrays));
    assert_eq!(program.call(&file, Command(0x4605), BASE), Ok(()));
    program.put(0, &with(8, [arrays[0], arrays[1], arrays[2], 0]));
    assert_eq!(program.call(&file, Command(0x4605), BASE), Ok(()));
    assert_eq!(
        told(&notes),
        ["cmap 4+8 (10, 20, 30, Some(40))", "cmap 4+8 (10, 20, 30, None)"]
    );
    for (length, errno) in [
        (0, Errno::EINVAL),
        (0x2000, Errno::EFAULT),
        (100_000, Errno::EFAULT),
        (0x20_0001, Errno::ENOMEM),
        (0x3fff_ffff, Errno::ENOMEM),
        (0x4000_0000, Errno::E2BIG),
        (u32::MAX, Errno::E2BIG),
    ] {
        program.put(0, &with(length, arrays));
        assert_eq!(
            program.call(&file, Command(0x4605), BASE),
            Err(errno),
            "{length:#x}"
        );
    }
    program.put(0, &with(8, [arrays[0], 0, arrays[2], 0]));
    assert_eq!(program.call(&file, Command(0x4605), BASE), Err(Errno::EFAULT));
    assert_eq!(told(&notes), [""; 0]);
}

#[test]
fn a_colour_map_is_given_as_far_as_there_is_one() {
    let (file, _) = file(Fake::default());
    for length in [1, 15, 16, 17, 1000, 70_000, u32::MAX] {
        let mut program = Program::new(ClientAbi::Native);
        // The framebuffer has no transparency: its pointer may be anything.
        program.put(0, &cmap(0, length, [BASE + 0x100, BASE + 0x200, BASE + 0x300, 1]));
        assert_eq!(program.call(&file, Command(0x4604), BASE), Ok(()));
        let filled = |at: usize| program.memory[at..].iter().position(|byte| *byte == 0xa5);
        let bytes = Some(2 * COLORS.min(length as usize));
        assert_eq!(
            (filled(0x100), filled(0x200), filled(0x300)),
            (bytes, bytes, bytes)
        );
        assert_eq!(program.memory[0x200], 2);
    }
    let mut program = Program::new(ClientAbi::Native);
    program.put(0, &cmap(0, 16, [BASE + 0x100, BASE + 0x200, 0, 0]));
    assert_eq!(program.call(&file, Command(0x4604), BASE), Err(Errno::EFAULT));
    program.put(0, &cmap(0, 0, [BASE; 4]));
    assert_eq!(program.call(&file, Command(0x4604), BASE), Err(Errno::EINVAL));
}

#[test]
fn numbers_are_no_pointers() {
    let (file, notes) = file(Fake::default());
    let mut program = Program::new(ClientAbi::Native);
    for level in 0..5 {
        assert_eq!(program.call(&file, Command(0x4611), level), Ok(()));
    }
    assert_eq!(told(&notes).len(), 5);
    for level in [5, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        assert_eq!(program.call(&file, Command(0x4611), level), Err(Errno::EINVAL));
    }
    assert_eq!(program.call(&file, Command(0xc068_4608), 0), Err(Errno::EINVAL));
    assert_eq!(told(&notes), [""; 0]);
}

#[test]
fn a_driver_that_does_not_look_at_the_crtc_may_be_given_any_pointer() {
    let wait = Command(0x4004_4620);
    let (file_of_drm, notes) = file(Fake::default());
    let mut program = Program::new(ClientAbi::Native);
    assert_eq!(program.call(&file_of_drm, wait, 0), Ok(()));
    assert_eq!((told(&notes), program.rounds), (vec!["wait 0".to_owned()], 1));
    let (other, notes) = file(Fake {
        needs_crtc: true,
        ..Fake::default()
    });
    assert_eq!(program.call(&other, wait, 0), Err(Errno::EFAULT));
    program.put(0, &7_u32.to_ne_bytes());
    assert_eq!(program.call(&other, wait, BASE), Ok(()));
    assert_eq!(told(&notes), ["wait 7"]);
    let (real, notes) = file(Fake {
        no_compat: true,
        ..Fake::default()
    });
    let mut program = Program::new(ClientAbi::COMPAT);
    assert_eq!(program.call(&real, wait, BASE), Err(Errno::ENOTTY));
    assert_eq!(
        program.call(&real, Command(0x8020_4612), BASE),
        Err(Errno::ENOTTY)
    );
    assert_eq!(told(&notes), [""; 0]);
}

#[test]
fn only_the_shim_is_given_a_dma_buf_and_it_fetches_it_once() {
    let (file, _) = file(Fake {
        no_compat: true,
        ..Fake::default()
    });
    let mut program = Program::new(ClientAbi::COMPAT);
    assert_eq!(program.call(&file, FBIOGET_DMABUF, BASE), Err(Errno::ENOTTY));
    program.has_shim = true;
    assert_eq!(program.call(&file, FBIOGET_DMABUF, BASE), Ok(()));
    let (ticket, _) = u32::read_from_prefix(&program.memory).expect("a number");
    assert!(
        file.exported
            .take(ticket)
            .is_some_and(|(_, close_on_exec)| close_on_exec)
    );
    assert!(file.exported.take(ticket).is_none());
}

proptest! {
    /// Whatever the program has in its memory, a call ends, and nothing outside of it is touched.
    #[test]
    fn any_bytes_are_answered(
        at in 0..ROWS.len(),
        compat: bool,
        bytes in proptest::collection::vec(any::<u8>(), 256),
        client_arg in prop_oneof![Just(BASE), Just(BASE + 0x3fc0), any::<u64>()],
        length in prop_oneof![any::<u32>(), 0_u32..40],
    ) {
        let (file, _) = file(Fake::default());
        let mut program = Program::new(if compat { ClientAbi::COMPAT } else { ClientAbi::Native });
        program.put(0, &bytes);
        program.put(4, &length.to_ne_bytes());
        let outcome = program.call(&file, ROWS[at].command, client_arg);
        if let Err(errno) = outcome {
            let known = [Errno::EFAULT, Errno::EINVAL, Errno::ENOTTY, Errno::E2BIG, Errno::ENOMEM];
            prop_assert!(known.contains(&errno), "{errno}");
        }
    }
}
