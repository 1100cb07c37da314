//! What `vidcompat status` tells, as plain data: the daemon fills it, JSON carries it, `show` prints it.
//!
//! Names and reasons are whole strings for people; what programs may want to count is a number or one of few words.
//! A field that is new is given a default, so that a command and a daemon of two versions understand each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::latency::within;

/// A daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of vidcompatd.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When this was looked at, in microseconds of CLOCK_MONOTONIC: rates come from two looks.
    #[serde(default)]
    pub at_us: u64,
    /// What became of restarts.
    #[serde(default)]
    pub survival: Survival,
    /// In the order in which they were given.
    pub devices: Vec<Device>,
    /// In the order in which they were given.
    #[serde(default)]
    pub framebuffers: Vec<Framebuffer>,
}

/// What became of the open files of daemons before this one: of all of them that served the same nodes without a break, and of
/// this one (`service/chronicle.rs`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Survival {
    /// Who keeps what must survive: `systemd`, `keeper`; `None`: nobody, and the nodes end with the daemon.
    pub kept_by: Option<String>,
    /// Daemons before this one that served the same nodes without a break.
    pub restarts: u64,
    /// Open files that went on.
    pub restored: u64,
    /// Open files that could not, and were ended.
    pub given_up: u64,
    /// Why not: the latest reasons, a sentence each.
    pub reasons: Vec<String>,
    /// Requests that the kernel has sent again.
    pub resent: u64,
    /// Microseconds from the beginning of this daemon until the last node of the daemon before was served again; `None`:
    /// there was none.
    pub took_us: Option<u64>,
}

/// A framebuffer and its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Framebuffer {
    /// What it is made of, as the operator has said: `/dev/fb0`, `kms:/dev/dri/card0`, `memory:1024x768x32`.
    pub source: String,
    /// Path of our node.
    pub node: String,
    /// `fb_fix_screeninfo::id`, or the card's driver.
    pub driver: String,
    /// As programs see it, where it could be found out.
    pub mode: Option<FbMode>,
    /// Of our own: `direct` (programs draw into memory that the hardware shows), `shadow` (it is shown from a copy).
    pub memory: Option<String>,
    /// Bytes of it: `smem_len`.
    pub memory_bytes: u64,
    /// Who exports it as a dma-buf (`exp_name` of fdinfo), if anybody does.
    pub dma_buf: Option<String>,
    /// What hardware shows of our own: width and height in pixels. `None`: there is none.
    pub output: Option<(u32, u32)>,
    /// Is the mode converted for the output?
    pub converted: bool,
    /// Can it be seen? `None`: of a real one that is not known.
    pub shown: Option<bool>,
    /// Why not.
    pub hidden: Option<String>,
    /// Of our own, since it was made.
    pub counters: FbCounters,
    /// The open files of our node.
    pub files: Vec<File>,
}

/// A framebuffer's mode, as `fb_var_screeninfo` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FbMode {
    /// Pixels that are shown.
    pub width: u32,
    /// Lines that are shown.
    pub height: u32,
    /// Pixels of a line in memory.
    pub virtual_width: u32,
    /// Lines in memory.
    pub virtual_height: u32,
    /// Bits of a pixel.
    pub depth: u32,
    /// Of its pixels, e.g. `RGB565`, `8-bit palette`, where it has a name.
    pub format: Option<String>,
    /// Bytes from one line to the next.
    pub line_length: u32,
}

/// What a screen of ours has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FbCounters {
    /// Times that something new was shown.
    pub frames: u64,
    /// FBIOPAN_DISPLAY that were shown.
    pub pans: u64,
    /// Times that the hardware was told of damage.
    pub damages: u64,
}

/// A real node and ours in front of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Path of the real node.
    pub real: String,
    /// Path of ours.
    pub node: String,
    /// As QUERYCAP names it.
    pub driver: String,
    /// As QUERYCAP names it.
    pub card: String,
    /// What went through it since it is served, in files that are open and that were.
    #[serde(default)]
    pub totals: Totals,
    /// The open files of our node.
    pub files: Vec<File>,
}

/// Of a device: what never goes down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// What was captured.
    pub capture: Counters,
    /// What was put out.
    pub output: Counters,
}

/// An open file of our node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Names it as long as it is open.
    pub fh: u64,
    /// The process that made the last call, if it still lives.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its name.
    #[serde(default)]
    pub comm: Option<String>,
    /// A call of this file has been in its driver for so long that nothing more could be found out.
    #[serde(default)]
    pub busy: bool,
    /// The queues that have buffers.
    pub queues: Vec<Queue>,
}

/// A queue with buffers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// [`type_name`]
    pub buf_type: String,
    /// What the client uses: `USERPTR`, `DMABUF`, `read()`, `write()`.
    pub memory: String,
    /// Whose memory takes what is not imported: `dma-heap`, `device's own`.
    #[serde(default)]
    pub provider: Option<String>,
    /// Between STREAMON and STREAMOFF.
    pub streaming: bool,
    /// How the device uses what it imports, e.g. `vmalloc queue`.
    #[serde(default)]
    pub importer: Option<String>,
    /// Since REQBUFS.
    #[serde(default)]
    pub counters: Counters,
    /// Buffers that were adopted,
    #[serde(default)]
    pub adopted: u64,
    /// and those that were not although the client has the shim, by the reason.
    #[serde(default)]
    pub not_adopted: BTreeMap<String, u64>,
    /// By index.
    pub buffers: Vec<Buffer>,
}

/// What a queue has done since its buffers were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Buffers that went through the device, and frames that were read or written.
    pub frames: u64,
    /// The same by the way that they took.
    pub by: FramesBy,
    /// Planes of them that the device had by import: no copy.
    pub imported: u64,
    /// Planes that were copied.
    pub copied: u64,
    /// bytes
    pub copied_bytes: u64,
    /// Copies through the client's address space.
    pub through_memory: u64,
    /// Copies through a mapping of the same object.
    pub through_object: u64,
    /// Looks at what stands behind a pointer.
    pub resolves: u64,
    /// Planes for which an earlier answer still held.
    pub remembered: u64,
    /// Planes that could be had in no way, and copies that failed.
    pub faults: u64,
    /// Frames in a second at the moment, an average over some eight of them; 0 where none come.
    pub fps: f64,
    /// Of DQBUF.
    pub latency: Latency,
}

/// Frames by how they were served; one of several planes counts as the plane that costs most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FramesBy {
    /// By a copy.
    pub copied: u64,
    /// The device had the client's own memory.
    pub imported: u64,
    /// The same, where the client shim has exchanged ordinary memory for ours.
    pub adopted: u64,
    /// The client has mapped the device's own buffers by the client shim.
    pub lent: u64,
    /// The client has brought dma-bufs itself.
    pub dmabuf: u64,
    /// By read().
    pub read: u64,
    /// By write().
    pub written: u64,
}

impl FramesBy {
    /// Each with its name, in one order.
    #[must_use]
    pub fn each(&self) -> [(&'static str, u64); 7] {
        [
            ("copied", self.copied),
            ("imported", self.imported),
            ("adopted", self.adopted),
            ("lent", self.lent),
            ("dmabuf", self.dmabuf),
            ("read", self.read),
            ("written", self.written),
        ]
    }
}

/// How long clients waited for what was there: from the moment when both the frame and the client's DQBUF were there, to
/// the moment when the answer is written. What the client is late does not count, nor what the device takes for the frame.
///
/// When the frame was there says the device's own timestamp, where it is one of CLOCK_MONOTONIC, of the end of the frame, and
/// not of the future (then the interrupt, the driver, the wake-up of the daemon and the copy are in it); else, of a client that slept, the
/// moment when the daemon was told that the device has something (then the driver is not in it).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// DQBUFs that got a buffer.
    pub count: u64,
    /// Those of them that were measured from the device's timestamp.
    pub stamped: u64,
    /// Microseconds of all together.
    pub sum_us: u64,
    /// The longest.
    pub most_us: u64,
    /// Half of them took no longer than this; `None`: there are none, or longer than the last bound.
    pub p50_us: Option<u64>,
    /// The same of 99 of 100.
    pub p99_us: Option<u64>,
    /// How many took no longer than the bound of their class, but longer than that of the class before:
    /// `latency::BOUNDS_US`, and one class without a bound.
    pub classes: Vec<u64>,
}

impl Latency {
    /// From what was counted.
    #[must_use]
    pub fn of(classes: Vec<u64>, sum_us: u64, most_us: u64, stamped: u64) -> Self {
        let count = classes.iter().sum();
        if count == 0 {
            return Self::default();
        }
        Self {
            count,
            stamped,
            sum_us,
            most_us,
            p50_us: within(&classes, 50).flatten(),
            p99_us: within(&classes, 99).flatten(),
            classes,
        }
    }

    /// What came since `before`; the longest is not known of that.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let of = |at: usize| before.classes.get(at).copied().unwrap_or(0);
        let new = |(at, count): (usize, &u64)| count.saturating_sub(of(at));
        Self::of(
            self.classes.iter().enumerate().map(new).collect(),
            self.sum_us.saturating_sub(before.sum_us),
            0,
            self.stamped.saturating_sub(before.stamped),
        )
    }
}

/// `count` in `us` microseconds, for a second.
#[must_use]
pub fn per_second(count: u64, us: u64) -> f64 {
    if us == 0 {
        return 0.0;
    }
    // In thousandths, which is as much as anybody reads, and exact.
    let thousandths = u128::from(count) * 1_000_000_000 / u128::from(us);
    f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 1000.0
}

/// A buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Its index.
    pub index: u32,
    /// `queued`, `done`, `prepared`, `dequeued`, `unknown`.
    pub state: String,
    /// One unless it is multi-planar; none where it has not been queued yet.
    pub planes: Vec<Plane>,
}

/// How a plane is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It has not been queued yet.
    #[default]
    NotQueued,
    /// The device has the client's own memory.
    Imported,
    /// The same, where the client shim has exchanged ordinary memory for ours.
    Adopted,
    /// The client has mapped the device's own buffer, by the client shim.
    Lent,
    /// The bytes are copied.
    Copied,
}

/// A plane of a buffer: what was found when it was queued last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plane {
    /// The client's pointer.
    pub client_addr: u64,
    /// bytes
    pub length: u64,
    /// The way.
    pub how: How,
    /// What stands behind the pointer, e.g. `dma-buf 17 (system)`.
    #[serde(default)]
    pub what: Option<String>,
    /// Why it is copied.
    #[serde(default)]
    pub why: Option<String>,
}

/// The name of a `V4L2_BUF_TYPE_*`, as status tells it.
#[must_use]
pub fn type_name(buf_type: u32) -> String {
    let name = match buf_type {
        1 => "video capture",
        2 => "video output",
        3 => "video overlay",
        4 => "VBI capture",
        5 => "VBI output",
        6 => "sliced VBI capture",
        7 => "sliced VBI output",
        8 => "video output overlay",
        9 => "video capture (mplane)",
        10 => "video output (mplane)",
        11 => "SDR capture",
        12 => "SDR output",
        13 => "metadata capture",
        14 => "metadata output",
        other => return format!("buffer type {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::{
        Buffer, Counters, Device, FbCounters, FbMode, File, Framebuffer, FramesBy, How, Latency, Plane,
        Queue, Status, Survival, Totals, per_second, type_name,
    };

    /// A daemon with something of everything.
    pub fn sample() -> Status {
        let plane = |how, what: &str, why: Option<&str>| Plane {
            client_addr: 0x7f0c_4a00_0000,
            length: 614_400,
            how,
            what: Some(what.to_owned()),
            why: why.map(str::to_owned),
        };
        let buffer = |index, state: &str, planes| Buffer {
            index,
            state: state.to_owned(),
            planes,
        };
        let capture = Queue {
            buf_type: type_name(1),
            memory: "USERPTR".to_owned(),
            provider: Some("dma-heap".to_owned()),
            streaming: true,
            importer: Some("vmalloc queue".to_owned()),
            counters: Counters {
                frames: 120,
                imported: 116,
                copied: 4,
                copied_bytes: 4 * 614_400,
                through_memory: 4,
                through_object: 0,
                resolves: 8,
                remembered: 112,
                faults: 1,
                by: FramesBy {
                    copied: 4,
                    imported: 86,
                    adopted: 30,
                    ..FramesBy::default()
                },
                fps: 29.97,
                latency: Latency::of(
                    vec![0, 0, 0, 60, 40, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                    48_000,
                    1_812,
                    120,
                ),
            },
            adopted: 1,
            not_adopted: BTreeMap::from([("it does not begin with a page".to_owned(), 3)]),
            buffers: vec![
                buffer(
                    0,
                    "queued",
                    vec![plane(How::Adopted, "our own buffer (dma-buf 17)", None)],
                ),
                buffer(
                    1,
                    "dequeued",
                    vec![plane(
                        How::Copied,
                        "anonymous memory",
                        Some("plain memory is copied"),
                    )],
                ),
                buffer(2, "dequeued", Vec::new()),
            ],
        };
        let output = Queue {
            buf_type: type_name(10),
            memory: "USERPTR".to_owned(),
            provider: Some("device's own".to_owned()),
            buffers: vec![buffer(
                0,
                "queued",
                vec![
                    plane(How::Copied, "memory of [heap]", Some("plain memory is copied")),
                    plane(How::Imported, "buffer 2 of /dev/video3", None),
                ],
            )],
            ..Queue::default()
        };
        Status {
            version: "0.1.0".to_owned(),
            pid: 412,
            at_us: 10_000_000,
            survival: Survival {
                kept_by: Some("systemd".to_owned()),
                restarts: 2,
                restored: 3,
                given_up: 1,
                reasons: vec!["the record of a session is of another version".to_owned()],
                resent: 5,
                took_us: Some(12_345),
            },
            devices: vec![
                Device {
                    real: "/dev/video0".to_owned(),
                    node: "/dev/video64".to_owned(),
                    driver: "vivid".to_owned(),
                    card: "vivid".to_owned(),
                    totals: Totals {
                        capture: Counters {
                            frames: 130,
                            by: FramesBy {
                                copied: 14,
                                ..capture.counters.by
                            },
                            copied_bytes: 14 * 614_400,
                            ..capture.counters.clone()
                        },
                        output: Counters::default(),
                    },
                    files: vec![
                        File {
                            fh: 3,
                            pid: Some(812),
                            comm: Some("capture\u{1b}[2J".to_owned()),
                            busy: false,
                            queues: vec![capture, output],
                        },
                        File {
                            fh: 4,
                            busy: true,
                            ..File::default()
                        },
                    ],
                },
                Device {
                    real: "/dev/video1".to_owned(),
                    node: "/dev/video65".to_owned(),
                    driver: "vivid".to_owned(),
                    card: "vivid".to_owned(),
                    ..Device::default()
                },
            ],
            framebuffers: framebuffers(),
        }
    }

    fn framebuffers() -> Vec<Framebuffer> {
        let mode = |width, height, depth, format: &str| FbMode {
            width,
            height,
            virtual_width: width,
            virtual_height: height,
            depth,
            format: Some(format.to_owned()),
            line_length: width * depth / 8,
        };
        let file = |fh| File {
            fh,
            pid: Some(900),
            comm: Some("fbi".to_owned()),
            ..File::default()
        };
        vec![
            Framebuffer {
                source: "/dev/fb0".to_owned(),
                node: "/dev/fb64".to_owned(),
                driver: "bochs-drmdrmfb".to_owned(),
                mode: Some(mode(1280, 800, 32, "XRGB8888")),
                memory_bytes: 4_096_000,
                files: vec![file(7)],
                ..Framebuffer::default()
            },
            Framebuffer {
                source: "kms:/dev/dri/card1".to_owned(),
                node: "/dev/fb1".to_owned(),
                driver: "virtio_gpu".to_owned(),
                mode: Some(FbMode {
                    virtual_height: 800,
                    ..mode(640, 400, 16, "RGB565")
                }),
                memory: Some("shadow".to_owned()),
                memory_bytes: 8_192_000,
                dma_buf: Some("udmabuf".to_owned()),
                output: Some((1280, 800)),
                converted: true,
                shown: Some(false),
                hidden: Some("another program is master of the card".to_owned()),
                counters: FbCounters {
                    frames: 120,
                    pans: 3,
                    damages: 118,
                },
                files: vec![file(1), file(2)],
            },
            Framebuffer {
                source: "memory:8x8x8".to_owned(),
                node: "/dev/fb2".to_owned(),
                shown: Some(false),
                ..Framebuffer::default()
            },
        ]
    }

    #[test]
    fn json_there_and_back_is_the_same_status() {
        let text = serde_json::to_string(&sample()).expect("plain data");
        let back: Status = serde_json::from_str(&text).expect("what we wrote");
        assert_eq!(back, sample());
        assert!(text.contains(r#""how":"adopted""#), "{text}");
        assert_eq!(
            serde_json::to_string(&How::NotQueued).expect("a word"),
            r#""not-queued""#
        );
    }

    #[test]
    fn a_rate_and_a_latency_are_of_the_time_between_two_looks() {
        assert!((per_second(30, 1_001_000) - 29.970).abs() < 1e-9);
        assert!(per_second(5, 0).abs() < f64::EPSILON);
        let before = Latency::of(vec![5, 0, 1], 700, 100, 6);
        let now = Latency::of(vec![5, 3, 1], 850, 100, 8);
        let between = now.since(&before);
        assert_eq!((between.count, between.stamped, between.sum_us), (3, 2, 150));
        assert_eq!((between.p50_us, between.p99_us), (Some(50), Some(50)));
        assert_eq!(now.since(&now), Latency::default());
    }

    #[test]
    fn a_newer_and_an_older_daemon_are_understood() {
        let text = r#"{"version":"9","pid":1,"news":[],"devices":[{"real":"a","node":"b","driver":"c","card":"d",
            "files":[{"fh":1,"queues":[{"buf_type":"video capture","memory":"USERPTR","streaming":true,
            "counters":{"frames":2,"more":1},"buffers":[]}]}]}]}"#;
        let status: Status = serde_json::from_str(text).expect("a status");
        assert_eq!(status.devices[0].files[0].queues[0].counters.frames, 2);
    }
}
