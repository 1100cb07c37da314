//! Shows test pictures on a graphics card by an `Output`, for the guest tests: `kms_show CARD WORD...`, where the words are
//! done one after the other and each one's result is printed.
//!
//! direct, canvas: show that; mode=N: in that mode; pan=X,Y; paint=N: bars moved by N; flip; damage; blank=N; sleep=MS;
//! vsync=N: wait for so many; watch=MS: what the presenter does, and what changes; back: give back; exit: without that; busy=MS: all of it at
//! random.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vidcompatd::backend::kms;
use vidcompatd::backend::output::{Direct, Hidden, Output, Rect};
use vidcompatd::sys::{CpuUse, Mapping, copy};

struct Show {
    output: Box<dyn Output>,
    direct: Option<Direct>,
    mode: usize,
    is_direct: bool,
    at: (u32, u32),
}

/// Eight vertical bars, moved to the left by `moved` pixels, with a white line every 100 lines, and grey every 100 + 50.
fn pixel(x: u32, y: u32, width: u32, moved: u32) -> u32 {
    const BARS: [u32; 8] = [
        0x00ff_ffff,
        0x00ff_ff00,
        0x0000_ffff,
        0x0000_ff00,
        0x00ff_00ff,
        0x00ff_0000,
        0x0000_00ff,
        0,
    ];
    match y % 100 {
        0 => 0x00ff_ffff,
        50 => 0x0080_8080,
        _ => {
            let bar = usize::try_from((x + moved) % width * 8 / width).unwrap_or(0);
            // Which hundred lines it is can be seen, too.
            BARS[bar] ^ (y / 100 * 0x10)
        }
    }
}

fn lines(width: u32, height: u32, pitch: usize, moved: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for y in 0..height {
        let end = bytes.len() + pitch;
        for x in 0..width {
            bytes.extend(pixel(x, y, width, moved).to_le_bytes());
        }
        bytes.resize(end, 0);
    }
    bytes
}

impl Show {
    fn size(&self) -> (u32, u32) {
        let mode = &self.output.modes()[self.mode];
        (mode.width, mode.height)
    }

    fn paint(&mut self, moved: u32, back: bool) -> io::Result<String> {
        let (width, height) = self.size();
        if self.is_direct {
            let direct = self.direct.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let size = usize::try_from(direct.size).map_err(io::Error::other)?;
            let pitch = usize::try_from(direct.pitch).map_err(io::Error::other)?;
            let picture = memfd()?;
            picture.write_all_at(&lines(direct.pitch / 4, direct.lines, pitch, moved), 0)?;
            let from = Mapping::shared(&picture, 0, size, CpuUse::Read)?;
            let to = Mapping::shared(&direct.dma_buf, 0, size, CpuUse::Write)?;
            copy(&from, 0, &to, 0, size).map_err(|error| io::Error::other(format!("{error:?}")))?;
            return Ok("painted".to_owned());
        }
        match self.output.canvas(self.mode, back) {
            Ok(canvas) => {
                canvas
                    .bytes
                    .copy_from_slice(&lines(width, height, canvas.pitch, moved));
                Ok("painted".to_owned())
            }
            Err(error) => Ok(format!("no canvas: {error}")),
        }
    }

    fn show(&mut self) -> Result<(), Hidden> {
        if self.is_direct {
            self.output.show_direct(self.mode, self.at.0, self.at.1)
        } else {
            self.output.show_canvas(self.mode)
        }
    }

    fn damage(&mut self) -> Result<(), Hidden> {
        let (width, height) = self.size();
        let all = Rect {
            x: 0,
            y: 0,
            width,
            height,
        };
        self.output.damage(&[all])
    }

    fn all(&mut self, n: u32) -> io::Result<String> {
        self.paint(n, false)?;
        let shown = self.show();
        let damaged = self.damage();
        Ok(format!("{shown:?} {damaged:?}"))
    }

    fn word(&mut self, word: &str) -> io::Result<String> {
        let (name, value) = word.split_once('=').unwrap_or((word, "0"));
        let number = || value.parse::<u32>().map_err(io::Error::other);
        Ok(match name {
            "direct" => {
                if self.direct.is_none() {
                    let (_, height) = self.size();
                    match self.output.direct(self.mode, height * 2) {
                        Ok(direct) => self.direct = Some(direct),
                        Err(error) => return Ok(format!("none: {error}")),
                    }
                }
                self.is_direct = true;
                self.all(0)?
            }
            "canvas" => {
                self.is_direct = false;
                self.all(0)?
            }
            "mode" => {
                self.mode = usize::try_from(number()?).map_err(io::Error::other)?;
                format!("{:?}", self.output.modes().get(self.mode))
            }
            "modes" => format!("{:#?}", self.output.modes()),
            "pan" => {
                let (x, y) = value.split_once(',').ok_or(io::ErrorKind::InvalidInput)?;
                self.at = (
                    x.parse().map_err(io::Error::other)?,
                    y.parse().map_err(io::Error::other)?,
                );
                format!("{:?}", self.show())
            }
            "paint" => self.paint(number()?, false)?,
            "flip" => {
                self.paint(number()?, true)?;
                let began = Instant::now();
                let flipped = self.output.flip(self.mode);
                format!("{flipped:?} after {:?}", began.elapsed())
            }
            "damage" => format!("{:?}, wants it: {}", self.damage(), self.output.needs_damage()),
            "blank" => format!("{:?}", self.output.blank(number()?)),
            "sleep" => {
                sleep(Duration::from_millis(number()?.into()));
                String::new()
            }
            "vsync" => {
                let (began, vsync) = (Instant::now(), self.output.vsync());
                let before = vsync.count();
                for _ in 0..number()? {
                    vsync.wait();
                }
                let counted = vsync.count().wrapping_sub(before);
                format!("{counted} of {:?} in {:?}", vsync.period(), began.elapsed())
            }
            "watch" => self.watch(Duration::from_millis(number()?.into()))?,
            "busy" => self.busy(Duration::from_millis(number()?.into()))?,
            // As if killed: nothing is given back.
            "exit" => std::process::exit(0),
            "console" => format!("{}", self.output.has_console()),
            "back" => {
                self.output.give_back();
                String::new()
            }
            _ => return Err(io::Error::other(format!("{word}?"))),
        })
    }

    /// What a presenter does: shows, and looks every 50 ms whether that is still to be seen.
    fn watch(&mut self, time: Duration) -> io::Result<String> {
        let began = Instant::now();
        let mut was = Ok(());
        let mut asked = 0;
        while began.elapsed() < time {
            let is = match was {
                Ok(()) => self.damage(),
                Err(_) => {
                    self.paint(0, false)?;
                    self.show()
                }
            };
            if is != was {
                println!("  at {:?}: {is:?}", began.elapsed());
                io::stdout().flush()?;
            }
            was = is;
            asked += 1;
            sleep(Duration::from_millis(50));
        }
        Ok(format!("{was:?} at last, asked {asked} times"))
    }

    /// Modes, pans, flips, for being killed at random moments.
    fn busy(&mut self, time: Duration) -> io::Result<String> {
        let began = Instant::now();
        let mut done = 0_u32;
        while began.elapsed() < time {
            let (_, height) = self.size();
            self.is_direct = self.direct.is_some() && done % 3 != 0;
            if self.is_direct {
                self.mode = 0;
                self.at = (0, done * 7 % height);
                let _ = self.show();
                let _ = self.damage();
            } else {
                self.mode = usize::try_from(done / 3).unwrap_or(0) % self.output.modes().len().min(4);
                let _ = self.show();
                let _ = self.output.flip(self.mode);
            }
            done += 1;
        }
        Ok(format!("{done} times"))
    }
}

fn memfd() -> io::Result<File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    Ok(File::from(nix::sys::memfd::memfd_create(c"picture", flags)?))
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let card = words.next().unwrap_or_default();
    let output = match kms::open(Path::new(&card), None) {
        Ok(output) => output,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{} {:?} {} modes",
        output.name(),
        output.size_mm(),
        output.modes().len()
    );
    let mut show = Show {
        output,
        direct: None,
        mode: 0,
        is_direct: false,
        at: (0, 0),
    };
    for word in words {
        match show.word(&word) {
            Ok(said) => println!("{word}: {said}"),
            Err(error) => {
                eprintln!("{word}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
