//! The ioctls of a framebuffer (`linux/fb.h`, fb_chrdev.c), whose numbers say neither size nor direction.
//!
//! The kernel has no list of what belongs to all framebuffers: what it does not know itself it gives to the driver. Of that
//! only what several drivers know, with one meaning, has a row. All else (`FBIO_ALLOC` to `FBIOGET_DISPINFO`, what OMAP,
//! i.MX and others have under the letter F for themselves) is answered `ENOTTY`.

use crate::abi::ClientAbi;
use crate::ioc::Command;
use crate::shim::FBIOGET_DMABUF;

/// What is asked.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fbio {
    GetVscreeninfo,
    PutVscreeninfo,
    GetFscreeninfo,
    GetCmap,
    PutCmap,
    PanDisplay,
    Cursor,
    GetCon2fbmap,
    PutCon2fbmap,
    Blank,
    GetVblank,
    Waitforvsync,
    GetDmabuf,
}

/// What the argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A number, or nothing that is looked at.
    Number,
    /// Points to a struct that the program gets.
    Out,
    /// Points to a struct that the program gives.
    In,
    /// Points to a struct that the program gives, and gets back if the call succeeds.
    InOut,
    /// Points to a `struct fb_cmap`, which the program gives, and which points to arrays that it gets.
    ArraysOut,
    /// Points to a `struct fb_cmap`, which the program gives, with the arrays that it points to.
    ArraysIn,
}

/// An ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// Name in `linux/fb.h`.
    pub name: &'static str,
    /// What is asked.
    pub op: Fbio,
    /// Its number for 64-bit programs.
    pub command: Command,
    /// That for 32-bit programs; `None`: they have no such ioctl (fb_chrdev.c, `fb_compat_ioctl`).
    pub command_compat: Option<Command>,
    /// What the argument is.
    pub argument: Argument,
    /// Bytes of the struct of a 64-bit program.
    pub size: usize,
    /// Bytes of the struct of a 32-bit program.
    pub size_compat: usize,
    /// The driver's own affair, and not the core's: some know it.
    pub is_drivers: bool,
}

impl Row {
    const fn new(name: &'static str, op: Fbio, number: u32, argument: Argument, size: usize) -> Self {
        Self {
            name,
            op,
            command: Command(number),
            command_compat: Some(Command(number)),
            argument,
            size,
            size_compat: size,
            is_drivers: false,
        }
    }

    const fn size_compat(mut self, size: usize) -> Self {
        self.size_compat = size;
        self
    }

    const fn not_compat(mut self) -> Self {
        self.command_compat = None;
        self
    }

    const fn drivers(mut self) -> Self {
        self.is_drivers = true;
        self
    }

    /// Bytes of the struct that the argument of a program of `abi` points to.
    #[must_use]
    pub const fn size_for(&self, abi: ClientAbi) -> usize {
        match abi {
            ClientAbi::Native => self.size,
            ClientAbi::I386 | ClientAbi::Arm32 => self.size_compat,
        }
    }
}

/// All of them. Not in the order of the header: what programs call at every frame comes first.
pub const ROWS: &[Row] = &[
    Row::new("FBIOPAN_DISPLAY", Fbio::PanDisplay, 0x4606, Argument::InOut, 160),
    Row::new(
        "FBIO_WAITFORVSYNC",
        Fbio::Waitforvsync,
        0x4004_4620,
        Argument::In,
        4,
    )
    .drivers(),
    Row::new(
        "FBIOGET_VSCREENINFO",
        Fbio::GetVscreeninfo,
        0x4600,
        Argument::Out,
        160,
    ),
    Row::new(
        "FBIOPUT_VSCREENINFO",
        Fbio::PutVscreeninfo,
        0x4601,
        Argument::InOut,
        160,
    ),
    Row::new(
        "FBIOGET_FSCREENINFO",
        Fbio::GetFscreeninfo,
        0x4602,
        Argument::Out,
        80,
    )
    .size_compat(68),
    Row::new("FBIOGETCMAP", Fbio::GetCmap, 0x4604, Argument::ArraysOut, 40).size_compat(24),
    Row::new("FBIOPUTCMAP", Fbio::PutCmap, 0x4605, Argument::ArraysIn, 40).size_compat(24),
    // Refused by the core before it looks at the argument.
    Row::new("FBIO_CURSOR", Fbio::Cursor, 0xc068_4608, Argument::Number, 0).not_compat(),
    Row::new(
        "FBIOGET_CON2FBMAP",
        Fbio::GetCon2fbmap,
        0x460f,
        Argument::InOut,
        8,
    ),
    Row::new("FBIOPUT_CON2FBMAP", Fbio::PutCon2fbmap, 0x4610, Argument::In, 8),
    Row::new("FBIOBLANK", Fbio::Blank, 0x4611, Argument::Number, 0),
    Row::new("FBIOGET_VBLANK", Fbio::GetVblank, 0x8020_4612, Argument::Out, 32).drivers(),
    Row::new(
        "FBIOGET_DMABUF",
        Fbio::GetDmabuf,
        FBIOGET_DMABUF.0,
        Argument::Out,
        8,
    )
    .drivers(),
];

/// The row of `command` for a program of `abi`.
#[must_use]
pub fn lookup(abi: ClientAbi, command: Command) -> Option<&'static Row> {
    ROWS.iter().find(|row| match abi {
        ClientAbi::Native => row.command == command,
        ClientAbi::I386 | ClientAbi::Arm32 => row.command_compat == Some(command),
    })
}

#[cfg(test)]
mod tests {
    use super::{Fbio, ROWS, lookup};
    use crate::abi::ClientAbi;
    use crate::ioc::Command;
    use proptest::prelude::*;

    #[test]
    fn every_row_is_found_by_its_number_and_there_are_no_two() {
        for row in ROWS {
            assert_eq!(lookup(ClientAbi::Native, row.command), Some(row));
            if let Some(command) = row.command_compat {
                assert_eq!(lookup(ClientAbi::COMPAT, command), Some(row));
            }
            assert_eq!(ROWS.iter().filter(|other| other.op == row.op).count(), 1);
        }
    }

    #[test]
    fn a_cursor_is_an_ioctl_of_64_bit_programs_only() {
        let (native, compat) = (Command(0xc068_4608), Command(0xc048_4608));
        assert_eq!(
            lookup(ClientAbi::Native, native).map(|row| row.op),
            Some(Fbio::Cursor)
        );
        for (abi, command) in [
            (ClientAbi::Native, compat),
            (ClientAbi::COMPAT, native),
            (ClientAbi::COMPAT, compat),
        ] {
            assert_eq!(lookup(abi, command), None);
        }
    }

    #[test]
    fn what_drivers_have_for_themselves_has_no_row() {
        // FBIO_ALLOC to FBIOGET_DISPINFO; OMAPFB_SYNC_GFX, by which MPlayer knows an OMAP; MXCFB_WAIT_FOR_VSYNC; 0x4603 and
        // 0x4607, which were the kernel's before 2.0.
        for number in [
            0x4603,
            0x4607,
            0x4613,
            0x4614,
            0x4615,
            0x4616,
            0x4617,
            0x4618,
            0x4f25,
            0x4004_4620 ^ 0x20,
        ] {
            for abi in [ClientAbi::Native, ClientAbi::COMPAT] {
                assert_eq!(lookup(abi, Command(number)), None, "{number:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_other_number_finds_a_row(raw in any::<u32>()) {
            let known = ROWS.iter().any(|row| row.command.0 == raw);
            prop_assert_eq!(lookup(ClientAbi::Native, Command(raw)).is_some(), known);
        }
    }
}
