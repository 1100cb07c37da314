//! The picture that vivid makes, when it moves: which frame is this?

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::run;
use crate::setup::VMALLOC;
use crate::sys::Pages;
use crate::video::real;

/// A control of the real node that has another value until this is dropped.
pub struct Control {
    number: u32,
    back: String,
}

impl Control {
    /// Sets it, by v4l2-ctl's name for it.
    pub fn set(number: u32, name: &str, value: u32, back: u32) -> anyhow::Result<Self> {
        set(number, &format!("{name}={value}"))?;
        Ok(Self {
            number,
            back: format!("{name}={back}"),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = set(self.number, &self.back) {
            eprintln!("{} cannot be set back: {error:#}", self.back);
        }
    }
}

/// Sets a control of the real node: `name=value`.
pub fn set(number: u32, assignment: &str) -> anyhow::Result<()> {
    let path = real(number).to_string();
    run(
        "v4l2-ctl",
        &["-d", &path, "-c", assignment],
        Duration::from_secs(10),
    )
    .map(drop)
}

/// The picture of the real device, at rest.
pub struct Picture {
    bytes: Vec<u8>,
    /// Bytes of a line.
    line: usize,
}

impl Picture {
    /// By one frame of the real node; the format must be one of four bytes for two pixels.
    pub fn take() -> anyhow::Result<Self> {
        let video = real(VMALLOC).open()?;
        let format = video.format()?;
        let size = format.pix_sizeimage();
        let memory = Pages::new(size as usize)?;
        video.reqbufs(1)?;
        video.qbuf(0, memory.at(0), size)?;
        video.streamon()?;
        video.dqbuf()?;
        let mut raw = [0; 4];
        // bytesperline
        raw.copy_from_slice(&format.fmt[16..20]);
        Ok(Self {
            bytes: memory.read(0, size as usize)?,
            line: u32::from_ne_bytes(raw) as usize,
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// By how many pixels to the right the whole of this frame is turned; an error if no single frame looks like it.
    pub fn turn(&self, frame: &[u8]) -> anyhow::Result<usize> {
        ensure!(frame.len() == self.bytes.len(), "{} bytes", frame.len());
        let turned = |line: &[u8], by: usize| [&line[line.len() - by..], &line[..line.len() - by]].concat();
        let first = &self.bytes[..self.line];
        let by = (0..self.line)
            .step_by(4)
            .find(|by| turned(first, *by) == frame[..self.line])
            .context("the first line is none of the picture")?;
        let mut lines = self.bytes.chunks(self.line).zip(frame.chunks(self.line));
        let wrong = lines.position(|(line, found)| turned(line, by) != found);
        ensure!(
            wrong.is_none(),
            "turned by {} pixels until line {wrong:?}, then not",
            by / 2
        );
        Ok(by / 2)
    }
}
