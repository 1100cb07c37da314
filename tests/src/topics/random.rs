//! Thousands of random queue calls, the same ones on the real node and on ours: every errno, every struct, every byte.
//!
//! What is asked for next may depend on how the calls before have ended, so after the first difference the two plays
//! part; only the first differing line counts. `VIDCOMPAT_SEED=N` plays one seed alone.

use std::collections::VecDeque;
use std::fs::File;

use anyhow::{Context, ensure};
use nix::poll::PollFlags;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2RequestBuffers};

use super::errnos::{Bench, word};
use crate::daemon;
use crate::report::{equal, figure};
use crate::setup::{CONTIG, Test, VMALLOC, is_6_1, is_long};
use crate::sys::{self, Access, PAGE, Pages};
use crate::video::{CAPTURE, Node, Video, buf_flag, buffer, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "random::queue_calls_have_the_same_outcome_as_on_the_real_node",
        || compare(ours(VMALLOC), &[1, 2, 3, 4]),
    ),
    (
        "random::queue_calls_have_the_same_outcome_where_the_device_refuses_userptr",
        || compare(ours(CONTIG), &[5, 6]),
    ),
];

const STEPS: u32 = 1500;
/// As many buffers as a vivid queue can have.
const BUFFERS: u32 = 64;
/// What a buffer's memory has beyond the size of a frame, for odd addresses and longer buffers.
const SPARE: usize = 2 * PAGE;

/// Plays each seed on the real vmalloc device and on `node`.
fn compare(node: Node, seeds: &[u64]) -> anyhow::Result<()> {
    daemon::shared()?;
    let chosen = std::env::var("VIDCOMPAT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let more = if is_long() { 100..136 } else { 100..100 };
    let seeds: Vec<u64> = match chosen {
        Some(seed) => vec![seed],
        None => seeds.iter().copied().chain(more).collect(),
    };
    let (mut frames, mut failures) = (0, 0);
    for seed in &seeds {
        let play = |node| Player::new(node, *seed)?.play();
        let compared = play(real(VMALLOC)).and_then(|native| {
            let served = play(node)?;
            if chosen.is_some() {
                println!("{}\n{}", native.join("\n"), served.join("\n"));
            }
            frames += native.iter().filter(|line| line.contains("whole")).count();
            failures += native.iter().filter(|line| line.contains(": E")).count();
            // Behind the first difference the two are about different things.
            let end = native.iter().zip(&served).position(|(a, b)| a != b);
            let end = end.map_or(native.len().max(served.len()), |at| at + 1);
            equal(
                native.get(..end).unwrap_or(&native),
                served.get(..end).unwrap_or(&served),
            )
        });
        compared.with_context(|| format!("seed {seed}, real node and {node}"))?;
    }
    figure(format!(
        "{node}: {} random calls, {failures} of them failed and {frames} gave a frame, as on the real node",
        seeds.len() * STEPS as usize
    ));
    ensure!(
        chosen.is_some() || frames > 100 * seeds.len() && failures > 100 * seeds.len(),
        "the random calls show too little: {frames} frames, {failures} failures"
    );
    Ok(())
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        // The upper half of the product: below `end`.
        #[allow(clippy::cast_possible_truncation)]
        let number = (((self.next() >> 32) * u64::from(end)) >> 32) as u32;
        number
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        // Slices of choices are short.
        #[allow(clippy::cast_possible_truncation)]
        let end = choices.len() as u32;
        choices[self.below(end) as usize]
    }
}

/// One file, and what its calls have come to so far.
struct Player {
    bench: Bench,
    random: Random,
    /// What every frame must be: the picture does not move.
    picture: Vec<u8>,
    /// Buffers that there are.
    count: u32,
    streaming: bool,
    /// Buffers with the driver, which fills them in this order.
    queued: VecDeque<u32>,
    /// Was the buffer with a streaming driver since its last DQBUF? Then whether the driver has filled it is chance.
    chance: [bool; BUFFERS as usize],
}

/// The picture, by the real node.
fn picture() -> anyhow::Result<Vec<u8>> {
    let bench = Bench::new(real(VMALLOC))?;
    bench.video.reqbufs(1)?;
    bench.video.on_buffer(command::QBUF, bench.good())?;
    bench.video.streamon()?;
    bench.video.dqbuf()?;
    bench.pages.read(0, bench.size as usize)
}

impl Player {
    fn new(node: Node, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            picture: picture()?,
            bench: Self::bench(node)?,
            random: Random(seed),
            count: 0,
            streaming: false,
            queued: VecDeque::new(),
            chance: [false; BUFFERS as usize],
        })
    }

    /// Memory for every buffer, then a read-only one, then a hole.
    fn bench(node: Node) -> anyhow::Result<Bench> {
        let video = node.open_with(libc::O_NONBLOCK)?;
        let size = video.sizeimage()?;
        let room = (size as usize).next_multiple_of(PAGE) + SPARE;
        let pages = Pages::new((BUFFERS as usize + 2) * room)?;
        pages.protect(BUFFERS as usize * room, room, Access::ReadOnly)?;
        pages.unmap((BUFFERS as usize + 1) * room, room);
        Ok(Bench {
            node,
            video,
            size,
            pages,
        })
    }

    fn play(mut self) -> anyhow::Result<Vec<String>> {
        (0..STEPS)
            .map(|step| Ok(format!("step {step}: {}", self.step()?)))
            .collect()
    }

    fn step(&mut self) -> anyhow::Result<String> {
        // More often than by chance alone: buffers, and a stream.
        if self.count == 0 && self.random.one_in(3) {
            return Ok(self.reqbufs());
        }
        if !self.streaming && !self.queued.is_empty() && self.random.one_in(5) {
            return Ok(self.stream("STREAMON", command::STREAMON));
        }
        match self.random.below(200) {
            0..66 => self.give("QBUF", command::QBUF),
            66..120 => self.dqbuf(),
            120..140 => Ok(self.querybuf()),
            140..158 => self.give("PREPARE_BUF", command::PREPARE_BUF),
            158..174 => Ok(self.stream("STREAMON", command::STREAMON)),
            174..182 => Ok(self.stream("STREAMOFF", command::STREAMOFF)),
            182..191 => Ok(self.reqbufs()),
            191..198 => Ok(self.create_bufs()),
            _ => self.reopen(),
        }
    }

    fn freed(&mut self) {
        (self.count, self.streaming) = (0, false);
        self.queued.clear();
        self.chance = [false; BUFFERS as usize];
    }

    fn reopen(&mut self) -> anyhow::Result<String> {
        // Not two at a time: the first one is to be closed when the second opens.
        self.bench.video = Video(File::open("/dev/null")?);
        self.bench.video = self.bench.node.open_with(libc::O_NONBLOCK)?;
        self.freed();
        Ok("close and open".to_owned())
    }

    fn index(&mut self) -> u32 {
        match self.random.below(12) {
            0 => self.random.of(&[self.count, 63, 64, 1000, u32::MAX]),
            1..4 => self.random.below(self.count.max(1)),
            // Few, so that they are met again in every state.
            _ => self.random.below(self.count.clamp(1, 4)),
        }
    }

    fn buf_type(&mut self) -> u32 {
        if self.random.one_in(25) {
            self.random.of(&[0, 2, 3, 4, 9, 99])
        } else {
            CAPTURE
        }
    }

    /// A buffer as it came back, without what timing decides.
    fn show(&self, call: &str, outcome: Result<V4l2Buffer, nix::errno::Errno>) -> String {
        let told = outcome.map(|mut told| {
            // With the driver: whether it is done with it yet is chance.
            if told.flags & buf_flag::DONE != 0 {
                told.flags = told.flags & !buf_flag::DONE | buf_flag::QUEUED;
            }
            // The driver writes this when it fills the buffer.
            if self.chance.get(told.index as usize) == Some(&true) {
                told.field = 0;
            }
            // Sequence and timestamp, which `Bench::show` leaves out, count the frames that vivid had no buffer for.
            told
        });
        format!("{call}: {}", self.bench.show(told))
    }

    /// QBUF or PREPARE_BUF.
    fn give(&mut self, name: &str, command: u64) -> anyhow::Result<String> {
        let (index, size) = (self.index(), self.bench.size);
        let room = (size as usize).next_multiple_of(PAGE) + SPARE;
        let place = match self.random.below(20) {
            // 6.1's drivers write to read-only memory.
            0 if !is_6_1() => BUFFERS as usize,
            0 | 1 => BUFFERS as usize + 1,
            _ => (index % BUFFERS) as usize,
        };
        let inside = self.random.of(&[0, 0, 0, 1, 8, 17, 100, 2048, 4095, 4096]);
        let address = match self.random.below(30) {
            0 => self
                .random
                .of(&[0, 1, 0xffff_8880_0000_0000, 0x0000_9000_0000_0000]),
            _ => self.bench.pages.at(place * room + inside),
        };
        let length = match self.random.below(10) {
            0 => self.random.of(&[0, size - 1, u32::MAX, 0x7fff_ffff]),
            1 => self.random.of(&[size + 1, size + 4095]),
            _ => size,
        };
        let mut given = buffer(index, address, length);
        given.buf_type = self.buf_type();
        if self.random.one_in(25) {
            given.memory = self.random.of(&[0, 1, 3, 4, 99]);
        }
        if self.random.one_in(10) {
            given.flags = !buf_flag::REQUEST_FD;
            (given.bytesused, given.field, given.reserved2) = (u32::MAX, 9, 9);
        }
        // What the driver may be writing to stays as it is.
        if place < BUFFERS as usize && index < BUFFERS && !self.queued.contains(&index) {
            self.bench.pages.write(place * room, &vec![0; room])?;
        }
        let outcome = self.bench.video.on_buffer(command, given);
        let at = index as usize;
        if outcome.is_ok() && command == command::QBUF {
            self.queued.push_back(index);
            self.chance[at] |= self.streaming;
        }
        let call = format!(
            "{name} of {index} at {}, length {length}, type {} memory {}",
            match address.checked_sub(self.bench.pages.at(0)) {
                Some(offset) if offset < (1 << 32) => format!("pages+{offset:#x}"),
                _ => format!("{address:#x}"),
            },
            given.buf_type,
            given.memory
        );
        Ok(self.show(&call, outcome))
    }

    fn dqbuf(&mut self) -> anyhow::Result<String> {
        let comes = self.streaming && !self.queued.is_empty();
        if comes {
            let bits = self.bench.video.poll(PollFlags::POLLIN, 3000)?;
            if !bits.contains(PollFlags::POLLIN) {
                return Ok(format!("no frame comes: {bits:?}"));
            }
        }
        let mut asked = buffer(77, 0x1234, 99);
        asked.buf_type = self.buf_type();
        asked.memory = self.random.of(&[0, 2, 2, 2, 99]);
        let outcome = self.bench.video.on_buffer(command::DQBUF, asked);
        let mut bytes = "";
        if let Ok(told) = &outcome {
            ensure!(
                Some(told.index) == self.queued.pop_front(),
                "buffer {} came out of turn",
                told.index
            );
            self.chance[told.index as usize] = false;
            let offset = usize::try_from(told.m.wrapping_sub(self.bench.pages.at(0)))?;
            let frame = self.bench.pages.read(offset, told.bytesused as usize)?;
            bytes = if frame == self.picture {
                ", whole"
            } else {
                ", NOT THE PICTURE"
            };
        }
        let call = format!("DQBUF of type {} memory {}", asked.buf_type, asked.memory);
        Ok(self.show(&call, outcome) + bytes)
    }

    fn querybuf(&mut self) -> String {
        let mut asked = buffer(self.index(), 0, 0);
        asked.buf_type = self.buf_type();
        asked.memory = self.random.of(&[0, 2, 99]);
        let outcome = self.bench.video.on_buffer(command::QUERYBUF, asked);
        let call = format!("QUERYBUF of {} type {}", asked.index, asked.buf_type);
        self.show(&call, outcome)
    }

    fn stream(&mut self, name: &str, command: u64) -> String {
        let mut buf_type = self.buf_type();
        let call = format!("{name} of type {buf_type}");
        let outcome = sys::ioctl(&self.bench.video, command, &mut buf_type);
        if outcome.is_ok() {
            self.streaming = command == command::STREAMON;
            if self.streaming {
                for index in &self.queued {
                    self.chance[*index as usize] = true;
                }
            } else {
                self.queued.clear();
            }
        }
        format!("{call}: {}", word(outcome))
    }

    fn reqbufs(&mut self) -> String {
        let mut request = V4l2RequestBuffers {
            count: self.random.of(&[0, 1, 2, 3, 4, 4, 5, 8, 33, 64, 1000]),
            buf_type: self.buf_type(),
            memory: memory::USERPTR,
            ..V4l2RequestBuffers::default()
        };
        // Only USERPTR is offered: with MMAP and DMABUF the two differ, as `errnos` says.
        if self.random.one_in(15) {
            request.memory = self.random.of(&[0, 3, 99]);
        }
        let call = format!("REQBUFS {} {}", request.count, request.memory);
        let before = self.bench.video.querybuf(0);
        let outcome = self.bench.reqbufs(request);
        if outcome.starts_with("ok[count ") {
            self.freed();
            self.count = number_behind(&outcome, "count ");
        }
        // A failure after the old buffers were freed must show too.
        let after = self.bench.video.querybuf(0);
        format!("{call}: {outcome}, {} -> {}", before.is_ok(), after.is_ok())
    }

    fn create_bufs(&mut self) -> String {
        let count = self.random.of(&[0, 1, 1, 2, 3, 64, 1000]);
        let by = self.random.of(&[0, 0, 0, 1, 4096, -1]);
        let wrong = self.random.one_in(15);
        let outcome = self.bench.create(count, |create| {
            let size = create.format.pix_sizeimage().wrapping_add_signed(by);
            create.format.fmt[20..24].copy_from_slice(&size.to_ne_bytes());
            if wrong {
                create.memory = 3;
            }
        });
        if outcome.starts_with("ok[") && count > 0 {
            self.count = number_behind(&outcome, "index ") + number_behind(&outcome, "count ");
        }
        format!("CREATE_BUFS {count}, size {by:+}: {outcome}")
    }
}

fn number_behind(text: &str, word: &str) -> u32 {
    let rest = text.split(word).nth(1).unwrap_or_default();
    let number = rest.split_whitespace().next().unwrap_or_default();
    number.parse().unwrap_or_default()
}
