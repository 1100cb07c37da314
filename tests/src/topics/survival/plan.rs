//! A program that streams, and what it makes compared with what it should make.

use std::collections::HashSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::programs::M2M_FRAMES;
use super::{HEIGHT, PATIENCE, TEXT_ROWS};
use crate::client::Client;
use crate::nodes::Found;
use crate::shim::Seat;
use crate::topics::programs::gst_words;

/// What a program makes is compared with this.
pub enum Expect {
    /// The program itself says so.
    Itself,
    /// Frames of a camera: this one, but for the upper rows.
    Frames(Vec<u8>),
    /// Exactly this.
    Bytes(Vec<u8>),
}

/// A program that streams, and how to start it again when it has come to its end before the last kill.
pub struct Plan<'a> {
    pub node: &'a Found,
    pub seat: Seat,
    /// Words, `NODE` being the node and `FILE` where frames are put.
    pub call: String,
    pub expect: Expect,
}

/// Frames of a program that counts them; at `RATE` a few seconds.
pub const COUNT: usize = 60;
/// Of one that does not live to count them, and of the next.
pub const ENDLESS: usize = 10_000;
pub const FEW: usize = 15;

pub fn plan<'a>(node: &'a Found, seat: Seat, call: &str, expect: Expect) -> Plan<'a> {
    Plan {
        node,
        seat,
        call: call.to_owned(),
        expect,
    }
}

impl Plan<'_> {
    pub fn file(&self) -> String {
        format!("/tmp/survival-{}", self.node.file)
    }

    pub fn start(&self, count: usize) -> anyhow::Result<Client> {
        let file = self.file();
        drop(fs::remove_file(&file));
        let call = self.call.replace("FILE", &file);
        let call = call.replace("COUNT3", &(3 * count).to_string());
        let call = call.replace("COUNT", &count.to_string());
        let words: Vec<String> = match call.strip_prefix("gst-launch-1.0 ") {
            Some(pipeline) => gst_words(pipeline)?,
            None => call.split_whitespace().map(str::to_owned).collect(),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.seat.start(&words)
    }

    /// Waits for its first frames.
    pub fn until_streaming(&self, client: &mut Client) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let streams = match &self.expect {
                Expect::Itself => client.line_if_any().is_some_and(|line| line == "streaming"),
                _ => fs::metadata(self.file()).is_ok_and(|file| file.len() > 0),
            };
            if streams {
                return Ok(());
            }
            let ended = client.has_ended()?;
            ensure!(
                !ended && begun.elapsed() < PATIENCE,
                "{} {} does not stream (ended: {ended}): {}",
                self.call,
                self.seat.name,
                if ended { client.rest() } else { String::new() }
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The program has ended: as it should, and what it has made is right.
    pub fn check(&self, client: &mut Client, count: usize, seen: &mut Seen) -> anyhow::Result<()> {
        let status = client.end(PATIENCE);
        let said = client.rest();
        let what = || format!("{} {}: {said}", self.call, self.seat.name);
        let status = status.with_context(what)?;
        ensure!(status.success(), "{status}: {}", what());
        seen.add(&said);
        match &self.expect {
            Expect::Itself => {}
            Expect::Frames(native) => {
                let bytes = fs::read(self.file())?;
                check_frames(&bytes, native, count).with_context(what)?;
                seen.frames += bytes.len() / native.len();
            }
            Expect::Bytes(native) => {
                let bytes = fs::read(self.file())?;
                let differing = bytes.iter().zip(native).position(|(ours, real)| ours != real);
                ensure!(
                    bytes.len() == native.len() && differing.is_none(),
                    "{} bytes instead of {}, differing from {differing:?} on: {}",
                    bytes.len(),
                    native.len(),
                    what()
                );
                seen.frames += M2M_FRAMES;
            }
        }
        Ok(())
    }
}

/// What one program has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub runs: usize,
    pub frames: usize,
    /// `None`: it tells no numbers.
    pub lost: Option<u64>,
    /// Milliseconds between two frames.
    pub longest: u64,
}

impl Seen {
    /// What the program says of itself: survivor's last line, or the numbers of v4l2-ctl --verbose.
    pub fn add(&mut self, said: &str) {
        self.runs += 1;
        if let Some(line) = said.lines().find(|line| line.starts_with("frames ")) {
            let numbers: Vec<u64> = line
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            if let [frames, lost, longest] = numbers[..] {
                self.frames += usize::try_from(frames).unwrap_or_default();
                *self.lost.get_or_insert(0) += lost;
                self.longest = self.longest.max(longest);
            }
        }
        let number = |line: &str, label| -> Option<u64> {
            line.split(label).nth(1)?.split_whitespace().next()?.parse().ok()
        };
        let sequences: Vec<u64> = said
            .lines()
            .filter(|line| line.contains("dqbuf"))
            .filter_map(|line| number(line, "seq:"))
            .collect();
        for pair in sequences.windows(2) {
            *self.lost.get_or_insert(0) += (pair[1] - pair[0]).saturating_sub(1);
        }
    }
}

/// Every frame is the camera's picture, and none comes twice.
pub fn check_frames(bytes: &[u8], native: &[u8], count: usize) -> anyhow::Result<()> {
    let size = native.len();
    ensure!(
        bytes.len() == count * size,
        "{} bytes instead of {count} frames",
        bytes.len()
    );
    let text = size / HEIGHT * TEXT_ROWS;
    let mut texts = HashSet::new();
    for (number, frame) in bytes.chunks_exact(size).enumerate() {
        let differing = (text..size).find(|at| frame[*at] != native[*at]);
        ensure!(
            differing.is_none(),
            "frame {number} differs from the real node's from byte {differing:?} on"
        );
        ensure!(texts.insert(&frame[..text]), "frame {number} was there before");
    }
    Ok(())
}
