//! Extended controls and EDID: lists in the client's memory, payloads behind them, and every way in which either can be
//! wrong.
//!
//! Both nodes act on the same controls, so each call starts from the same values, set through the real node, and is
//! followed by a look at what it has made of them.

use std::fmt::Write;
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use vidcompat_proto::abi::controls::{V4l2ExtControl, V4l2ExtControls};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::client::{AT_ONCE, run};
use crate::daemon;
use crate::report::{figure, same};
use crate::setup::{self, Test, VMALLOC};
use crate::sys::{self, Access, PAGE, Pages};
use crate::video::{Node, Video, real};

pub const TESTS: &[(&str, Test)] = &[
    ("controls::of_every_kind_are_got_set_and_tried", every_kind),
    ("controls::payloads_of_a_wrong_size_end_as_the_driver_says", sizes),
    (
        "controls::in_one_list_they_are_done_in_order_until_one_fails",
        mixed,
    ),
    ("controls::lists_of_no_of_1024_and_of_more_controls", counts),
    ("controls::memory_that_is_not_there_or_not_writable", bad_memory),
    ("controls::garbage_pointers_of_values_are_never_followed", garbage),
    ("controls::classes_defaults_and_requests", which),
    (
        "controls::an_array_that_grows_with_the_format_is_never_stale",
        growing,
    ),
    ("controls::v4l2_ctl_lists_the_same", listed),
];

const G: u64 = 0xc020_5647;
const S: u64 = 0xc020_5648;
const TRY: u64 = 0xc020_5649;
const ALL: [u64; 3] = [G, S, TRY];

const fn name(command: u64) -> &'static str {
    match command {
        G => "G",
        S => "S",
        _ => "TRY",
    }
}

/// Vivid's own (vivid-ctrls.c).
mod id {
    const CUSTOM: u32 = 0x0098_f900;
    pub const BUTTON: u32 = CUSTOM;
    pub const BOOLEAN: u32 = CUSTOM + 1;
    pub const INTEGER: u32 = CUSTOM + 2;
    pub const INTEGER64: u32 = CUSTOM + 3;
    pub const MENU: u32 = CUSTOM + 4;
    pub const STRING: u32 = CUSTOM + 5;
    pub const BITMASK: u32 = CUSTOM + 6;
    pub const INTMENU: u32 = CUSTOM + 7;
    pub const U32_ARRAY: u32 = CUSTOM + 8;
    pub const U16_MATRIX: u32 = CUSTOM + 9;
    pub const U8_4D_ARRAY: u32 = CUSTOM + 10;
    pub const AREA: u32 = CUSTOM + 11;
    pub const RO_INTEGER: u32 = CUSTOM + 12;
    pub const DYN_ARRAY: u32 = CUSTOM + 13;
    pub const PIXEL_ARRAY: u32 = CUSTOM + 14;
    pub const S32_ARRAY: u32 = CUSTOM + 15;
    pub const S64_ARRAY: u32 = CUSTOM + 16;
    /// Nobody's.
    pub const UNKNOWN: u32 = CUSTOM + 0x77;
    /// A control class, which is no control.
    pub const USER_CLASS: u32 = 0x0098_0001;
    /// Of another class.
    pub const TEST_PATTERN: u32 = 0x00f0_f000;
}

const USER: u32 = 0x0098_0000;
const VIVID: u32 = 0x00f0_0000;
const DEFAULT: u32 = 0x0f00_0000;
const REQUEST: u32 = 0x0f01_0000;

/// A control as a client gives it.
#[derive(Clone, Debug)]
struct Given {
    id: u32,
    size: u32,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    /// These eight bytes.
    Raw(u64),
    /// A pointer to these bytes, with others around them.
    At(Vec<u8>),
    /// As many bytes before a page that [`Damage`] may change, the rest behind.
    Across(Vec<u8>, usize),
}

const fn value(id: u32, value: u64) -> Given {
    Given {
        id,
        size: 0,
        value: Value::Raw(value),
    }
}

fn payload(id: u32, bytes: Vec<u8>) -> Given {
    // Payloads here are small.
    #[allow(clippy::cast_possible_truncation)]
    let size = bytes.len() as u32;
    Given {
        id,
        size,
        value: Value::At(bytes),
    }
}

impl Given {
    fn size(mut self, size: u32) -> Self {
        self.size = size;
        self
    }
}

/// What is wrong with the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    None,
    /// The struct's page.
    Struct(Hurt),
    /// The list, from this page of it on.
    List(usize, Hurt),
    /// The payload of the control with this number, from its second page on.
    Payload(usize, Hurt),
    /// The pointer to the list is this.
    Pointer(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hurt {
    ReadOnly,
    NoAccess,
    Unmapped,
}

/// A call on its way: the struct in the first page, the list behind it, then a slot for each payload.
struct Call {
    pages: Pages,
}

const LIST: usize = PAGE;
/// Room for 1025 controls and a page more.
const LIST_LEN: usize = 7 * PAGE;
const SLOTS: usize = LIST + LIST_LEN;
const SLOT: usize = 10 * PAGE;
const SLOT_COUNT: usize = 18;
/// What is in a slot where no payload is.
const FILL: u8 = 0xa5;

const fn slot(number: usize) -> usize {
    SLOTS + number * SLOT
}

impl Call {
    fn new(header: V4l2ExtControls, given: &[Given]) -> anyhow::Result<Self> {
        let pages = Pages::new(slot(given.len().min(SLOT_COUNT)))?;
        let call = Self { pages };
        for (number, one) in given.iter().enumerate() {
            if number < SLOT_COUNT {
                call.pages.write(slot(number), &vec![FILL; SLOT])?;
            }
            let value = match &one.value {
                Value::Raw(raw) => *raw,
                Value::At(bytes) => {
                    call.pages.write(slot(number) + PAGE, bytes)?;
                    call.pages.at(slot(number) + PAGE)
                }
                Value::Across(bytes, before) => {
                    call.pages.write(slot(number) + PAGE - before, bytes)?;
                    call.pages.at(slot(number) + PAGE - before)
                }
            };
            let control = V4l2ExtControl {
                id: one.id,
                size: one.size,
                reserved2: 0x5555,
                value: value.to_ne_bytes(),
            };
            call.pages.write(LIST + number * 20, control.as_bytes())?;
        }
        let header = V4l2ExtControls {
            controls: call.pages.at(LIST),
            ..header
        };
        call.pages.write(0, header.as_bytes())?;
        Ok(call)
    }

    fn hurt(&self, offset: usize, len: usize, hurt: Hurt) -> anyhow::Result<()> {
        match hurt {
            Hurt::ReadOnly => self.pages.protect(offset, len, Access::ReadOnly)?,
            Hurt::NoAccess => self.pages.protect(offset, len, Access::None)?,
            Hurt::Unmapped => self.pages.unmap(offset, len),
        }
        Ok(())
    }

    fn damage(&self, damage: Damage) -> anyhow::Result<()> {
        match damage {
            Damage::None => Ok(()),
            Damage::Struct(hurt) => self.hurt(0, PAGE, hurt),
            Damage::List(from, hurt) => self.hurt(LIST + from * PAGE, LIST_LEN - from * PAGE, hurt),
            Damage::Payload(number, hurt) => self.hurt(slot(number) + PAGE, SLOT - PAGE, hurt),
            Damage::Pointer(pointer) => self.pages.write(24, pointer.as_bytes()),
        }
    }

    /// An address, told so that it does not depend on where the pages lie.
    fn pointer(&self, raw: u64) -> String {
        match raw {
            _ if raw >= self.pages.at(0) && raw < self.pages.at(self.pages.len()) => {
                format!("pages+{:#x}", raw - self.pages.at(0))
            }
            _ => format!("{raw:#x}"),
        }
    }

    /// All that has come back.
    fn show(&self, controls: usize) -> String {
        let mut text = String::new();
        match self.pages.read(0, 32) {
            Err(_) => text.push_str("[no struct]"),
            Ok(raw) => {
                // Always 32 bytes.
                let header = V4l2ExtControls::read_from_bytes(&raw).unwrap_or_default();
                // Writing to a String cannot fail, here and below.
                let _ = write!(
                    text,
                    "[which {:#x} count {} error_idx {} request_fd {} reserved {} controls {}]",
                    header.which,
                    header.count,
                    header.error_idx,
                    header.request_fd,
                    header.reserved,
                    self.pointer(header.controls)
                );
            }
        }
        for number in 0..controls {
            // Of a long list, the ends.
            if (4..controls.saturating_sub(4)).contains(&number) && controls > SLOT_COUNT {
                continue;
            }
            match self.pages.read(LIST + number * 20, 20) {
                Err(_) => text.push_str(" {no control}"),
                Ok(raw) => {
                    let control = V4l2ExtControl::read_from_bytes(&raw).unwrap_or_default();
                    let _ = write!(
                        text,
                        " {{{:#x} size {} reserved {:#x} value {}",
                        control.id,
                        control.size,
                        control.reserved2,
                        self.pointer(u64::from_ne_bytes(control.value))
                    );
                }
            }
            if number < SLOT_COUNT {
                let _ = write!(text, " {}}}", self.show_slot(number));
            }
        }
        text
    }

    /// The bytes of a slot that are no filling, page by page where pages are missing.
    fn show_slot(&self, number: usize) -> String {
        let mut text = String::new();
        for page in 0..SLOT / PAGE {
            match self.pages.read(slot(number) + page * PAGE, PAGE) {
                Err(_) => {
                    let _ = write!(text, "({page} gone)");
                }
                Ok(bytes) => text.push_str(&show_bytes(&bytes, page * PAGE)),
            }
        }
        text
    }
}

fn show_bytes(bytes: &[u8], base: usize) -> String {
    let other = |byte: &u8| *byte != FILL;
    let (Some(first), Some(last)) = (bytes.iter().position(other), bytes.iter().rposition(other)) else {
        return String::new();
    };
    let inner = &bytes[first..=last];
    let sum = inner.iter().fold(14_695_981_039_346_656_037u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211)
    });
    format!(
        "({}+{} {:x?}.. {sum:x})",
        base + first,
        inner.len(),
        &inner[..inner.len().min(12)]
    )
}

/// An ioctl on a list: its outcome and all that has come back.
fn play(
    video: &Video,
    command: u64,
    header: V4l2ExtControls,
    given: &[Given],
    damage: Damage,
) -> anyhow::Result<String> {
    let call = Call::new(header, given)?;
    call.damage(damage)?;
    let outcome = sys::ioctl_in(video, command, &call.pages, 0);
    Ok(format!("{outcome:?} {}", call.show(given.len())))
}

/// The same of the list as it is, in class `which`.
fn plain(video: &Video, command: u64, which: u32, given: &[Given]) -> anyhow::Result<String> {
    play(video, command, header(which, given.len()), given, Damage::None)
}

fn header(which: u32, count: usize) -> V4l2ExtControls {
    let mut header = V4l2ExtControls::new_zeroed();
    header.which = which;
    // No list is longer than 1025.
    #[allow(clippy::cast_possible_truncation)]
    let count = count as u32;
    header.count = count;
    header.error_idx = 77;
    header.reserved = 88;
    header
}

fn words<T: Copy + IntoBytes + zerocopy::Immutable>(values: &[T]) -> Vec<u8> {
    values.as_bytes().to_vec()
}

/// Every control with a payload, as it is before each call.
fn before() -> Vec<Given> {
    vec![
        payload(id::STRING, b"abc\0".to_vec()),
        payload(id::U32_ARRAY, words(&[0x10u32])),
        payload(id::U16_MATRIX, words(&[0x20u16; 128])),
        payload(id::U8_4D_ARRAY, vec![0x11; 120]),
        payload(id::AREA, words(&[3u32, 4])),
        payload(id::DYN_ARRAY, words(&[10u32, 20, 30])),
        payload(id::S32_ARRAY, words(&[1i32, -1])),
        payload(id::S64_ARRAY, words(&[1i64, 2, 3, -4, -5])),
    ]
}

/// Other good values of the same.
fn other() -> Vec<Given> {
    let ascending: Vec<u16> = (0..128).map(|at| 0x100 + at).collect();
    vec![
        payload(id::STRING, b"wxyz\0".to_vec()),
        payload(id::U32_ARRAY, words(&[0x1234u32])),
        payload(id::U16_MATRIX, words(&ascending)),
        payload(id::U8_4D_ARRAY, (0..120).map(|at| 0x10 + at % 16).collect()),
        payload(id::AREA, words(&[640u32, 480])),
        payload(id::DYN_ARRAY, words(&[11u32, 12, 13, 14, 15])),
        payload(id::S32_ARRAY, words(&[9i32, -9])),
        payload(id::S64_ARRAY, words(&[-1i64, -2, -3, 4, 5])),
    ]
}

fn values() -> Vec<Given> {
    vec![
        value(id::BOOLEAN, 1),
        value(id::INTEGER, 100),
        value(id::INTEGER64, 0x8000_0000_0000_0000),
        value(id::MENU, 3),
        value(id::BITMASK, 0x80),
        value(id::INTMENU, 4),
    ]
}

/// All controls that a test touches and that this kernel's vivid has.
fn touched() -> anyhow::Result<Vec<Given>> {
    static KNOWN: OnceLock<Vec<u32>> = OnceLock::new();
    let all = before().into_iter().chain(values());
    if let Some(known) = KNOWN.get() {
        return Ok(all.filter(|one| known.contains(&one.id)).collect());
    }
    let video = real(VMALLOC).open()?;
    let mut known = Vec::new();
    for one in all {
        let told = plain(&video, G, 0, &[value(one.id, 0)])?;
        let missing = one.id > id::AREA && told.starts_with("Err(EINVAL)");
        ensure!(
            told.starts_with("Ok(0)") || told.starts_with("Err(ENOSPC)") || missing,
            "{told}"
        );
        if !missing {
            known.push(one.id);
        }
    }
    KNOWN.get_or_init(|| known);
    touched()
}

/// One list of `controls` through the real node: its values and payloads as they are then.
fn at_once(command: u64, controls: &[Given]) -> anyhow::Result<String> {
    const ROOM: usize = 1024;
    let pages = Pages::new(PAGE + controls.len() * ROOM)?;
    pages.write(PAGE, &vec![FILL; controls.len() * ROOM])?;
    let mut raw = header(0, controls.len());
    raw.controls = pages.at(64);
    pages.write(0, raw.as_bytes())?;
    let mut list = Vec::new();
    for (number, one) in controls.iter().enumerate() {
        let at = PAGE + number * ROOM;
        let value = match &one.value {
            Value::Raw(raw) => *raw,
            Value::At(bytes) | Value::Across(bytes, _) => {
                pages.write(at, bytes)?;
                pages.at(at)
            }
        };
        list.push(V4l2ExtControl {
            id: one.id,
            size: one.size,
            reserved2: 0,
            value: value.to_ne_bytes(),
        });
    }
    pages.write(64, list.as_bytes())?;
    sys::ioctl_in(&real(VMALLOC).open()?, command, &pages, 0).context("the values in between")?;
    let mut text = String::new();
    for (number, one) in controls.iter().enumerate() {
        let raw = pages.read(64 + number * 20, 20)?;
        match one.value {
            Value::Raw(_) => write!(text, "{:x?} ", &raw[12..])?,
            _ => text.push_str(&show_bytes(&pages.read(PAGE + number * ROOM, ROOM)?, 0)),
        }
    }
    Ok(text)
}

/// Sets every control that a test touches, through the real node.
fn reset() -> anyhow::Result<()> {
    at_once(S, &touched()?).map(drop)
}

/// What all controls are now, by the real node.
fn state() -> anyhow::Result<String> {
    let controls: Vec<_> = touched()?
        .into_iter()
        .map(|one| match one.value {
            Value::Raw(_) => one,
            _ => payload(one.id, vec![FILL; 1000]),
        })
        .collect();
    at_once(G, &controls)
}

/// A call that is compared: its name, command, header, controls, damage.
struct Case {
    name: String,
    command: u64,
    header: V4l2ExtControls,
    given: Vec<Given>,
    damage: Damage,
}

fn case(name: impl Into<String>, command: u64, given: &[Given]) -> Case {
    Case {
        name: name.into(),
        command,
        header: header(0, given.len()),
        given: given.to_vec(),
        damage: Damage::None,
    }
}

/// Plays all cases on both nodes; the lines of the real one.
fn compare(what: &str, cases: &[Case]) -> anyhow::Result<Vec<String>> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        let mut lines = Vec::new();
        for Case {
            name: title,
            command,
            header,
            given,
            damage,
        } in cases
        {
            reset()?;
            let video = node.open()?;
            let told = play(&video, *command, *header, given, *damage)?;
            lines.push(format!("{} {title}: {told}, then {}", name(*command), state()?));
        }
        Ok(lines)
    });
    reset()?;
    let lines = lines?;
    let good = lines.iter().filter(|line| line.contains(": Ok(0)")).count();
    figure(format!("{what}: {} calls, {good} of them succeed", lines.len()));
    Ok(lines)
}

/// Is there a line that begins so? A comparison of two nodes that both fail for another reason shows nothing.
fn told(lines: &[String], begin: &str) -> anyhow::Result<()> {
    ensure!(
        lines.iter().any(|line| line.starts_with(begin)),
        "no line begins with {begin:?}:\n{}",
        lines.join("\n")
    );
    Ok(())
}

fn every_kind() -> anyhow::Result<()> {
    let mut cases = Vec::new();
    let more = [
        value(id::BUTTON, 1),
        value(id::RO_INTEGER, 1),
        value(id::USER_CLASS, 0),
        value(id::UNKNOWN, 0),
        value(id::STRING | 0x8000_0000, 0),
        value(0, 0),
        value(u32::MAX, 0),
        value(id::INTEGER, 0xdead_beef_0000_0007),
        value(id::INTEGER, 100_000),
        value(id::MENU, 2),
        value(id::BITMASK, u64::from(u32::MAX)),
        payload(id::STRING, b"a\0".to_vec()),
        payload(id::STRING, b"too long\0".to_vec()),
        payload(id::STRING, b"ab\0cd".to_vec()),
        payload(id::AREA, words(&[0u32, 0])),
        payload(id::DYN_ARRAY, words(&[50u32; 100])),
        payload(id::DYN_ARRAY, words(&[9u32, 91])),
        payload(id::U8_4D_ARRAY, vec![0; 120]),
    ];
    for one in other().into_iter().chain(values()).chain(more) {
        for command in ALL {
            cases.push(case(
                format!("{:#x} {:?}", one.id, one.value),
                command,
                std::slice::from_ref(&one),
            ));
        }
    }
    let lines = compare("controls of every kind", &cases)?;
    told(&lines, "S 0x98f905 At([119, 120, 121, 122, 0]): Ok(0)")?;
    told(&lines, "G 0x98f909 At(")?;
    told(&lines, "G 0x98f900 Raw(1): Err(EACCES)")
}

fn sizes() -> anyhow::Result<()> {
    let mut cases = Vec::new();
    for one in other() {
        let exact = one.size;
        for size in [
            0,
            1,
            exact - 1,
            exact,
            exact + 1,
            exact + 3,
            exact + 4,
            2 * exact + 5,
            399,
            400,
            403,
            404,
            65_536,
            131_073,
            0x7fff_ffff,
            u32::MAX,
        ] {
            for command in ALL {
                cases.push(case(
                    format!("{:#x} of {size}", one.id),
                    command,
                    &[one.clone().size(size)],
                ));
            }
        }
    }
    let lines = compare("payloads of every size", &cases)?;
    told(&lines, "G 0x98f909 of 255: Err(ENOSPC)")?;
    told(&lines, "S 0x98f909 of 255: Err(EFAULT)")?;
    told(&lines, "S 0x98f909 of 4294967295: Ok(0)")?;
    told(&lines, "S 0x98f905 of 0: Err(ERANGE)")
}

fn mixed() -> anyhow::Result<()> {
    let all: Vec<_> = other()
        .into_iter()
        .zip(values())
        .flat_map(|(one, two)| [one, two])
        .collect();
    let mut cases = Vec::new();
    for command in ALL {
        cases.push(case("everything", command, &all));
        for failing in [
            value(id::UNKNOWN, 0),
            value(id::INTEGER, 100_000),
            value(id::RO_INTEGER, 1),
            value(id::BUTTON, 1),
            payload(id::STRING, b"x\0".to_vec()),
            payload(id::U16_MATRIX, vec![0; 255]),
            payload(id::DYN_ARRAY, vec![0; 404]),
            payload(id::AREA, words(&[0u32, 0])),
        ] {
            for at in [0, 3, 12] {
                let mut list = all.clone();
                list.truncate(12);
                list.insert(at, failing.clone());
                cases.push(case(format!("{:#x} at {at}", failing.id), command, &list));
            }
        }
        // The same control twice, and two payloads in one place.
        let twice = [
            all[0].clone(),
            payload(id::STRING, b"no\0".to_vec()),
            all[2].clone(),
            all[2].clone(),
        ];
        cases.push(case("twice", command, &twice));
    }
    let lines = compare("lists", &cases)?;
    told(&lines, "TRY everything: Ok(0)")
}

fn counts() -> anyhow::Result<()> {
    let many = |count| vec![value(id::INTEGER, 5).size(3); count];
    let strings = |count| vec![value(id::STRING, 8).size(5); count];
    let mut cases = Vec::new();
    for command in ALL {
        for class in [0, USER, VIVID, 0x00aa_0000, 0x1234, DEFAULT, REQUEST, u32::MAX] {
            let mut none = case(format!("none of {class:#x}"), command, &[]);
            none.header.which = class;
            none.damage = Damage::Pointer(0x10);
            cases.push(none);
        }
        for count in [1, 2, 4, 5, 204, 205, 1024, 1025] {
            cases.push(case(format!("{count} values"), command, &many(count)));
        }
        cases.push(case("1024 strings nowhere", command, &strings(1024)));
        for count in [1025, 0x8000_0000, 0x0ccc_cccd, u32::MAX] {
            let mut announced = case(format!("{count} announced"), command, &many(1));
            announced.header.count = count;
            cases.push(announced);
        }
        for from in [0, 1, 5] {
            let mut missing = case(format!("1024 without page {from}"), command, &many(1024));
            missing.damage = Damage::List(from, Hurt::Unmapped);
            cases.push(missing);
        }
    }
    let lines = compare("long lists", &cases)?;
    told(&lines, "S 1024 values: Ok(0)")?;
    told(&lines, "S 1025 values: Err(EINVAL)")?;
    told(&lines, "G none of 0x980000: Ok(0)")
}

fn bad_memory() -> anyhow::Result<()> {
    let integer = value(id::INTEGER, 42);
    let last = value(id::INTMENU, 6);
    let mut cases = Vec::new();
    for command in ALL {
        for one in other() {
            let list = [integer.clone(), one.clone(), last.clone()];
            for pointer in [
                0,
                1,
                4096,
                0xffff_8000_0000_0000,
                0xdead_beef_dead_beef,
                u64::MAX - 1,
            ] {
                let mut list = list.clone();
                list[1].value = Value::Raw(pointer);
                cases.push(case(format!("{:#x} at {pointer:#x}", one.id), command, &list));
            }
            for hurt in [Hurt::ReadOnly, Hurt::NoAccess, Hurt::Unmapped] {
                let mut hurting = case(format!("{:#x} {hurt:?}", one.id), command, &list);
                hurting.damage = Damage::Payload(1, hurt);
                cases.push(hurting);
                let Value::At(bytes) = &one.value else { continue };
                let mut list = list.clone();
                list[1].value = Value::Across(bytes.clone(), 2);
                let mut hurting = case(
                    format!("{:#x} {hurt:?} from its third byte on", one.id),
                    command,
                    &list,
                );
                hurting.damage = Damage::Payload(1, hurt);
                cases.push(hurting);
            }
        }
        for hurt in [Hurt::ReadOnly, Hurt::NoAccess, Hurt::Unmapped] {
            for damage in [Damage::Struct(hurt), Damage::List(0, hurt)] {
                let mut hurting = case(format!("{damage:?}"), command, &[integer.clone(), last.clone()]);
                hurting.damage = damage;
                cases.push(hurting);
            }
        }
        // More is claimed than is there, and what is there is enough, or too little by one.
        for (one, there) in [
            (payload(id::STRING, b"wx\0".to_vec()), 5),
            (payload(id::STRING, b"wx\0".to_vec()), 4),
            (payload(id::STRING, b"wx\0".to_vec()), 3),
            (payload(id::DYN_ARRAY, words(&[11u32, 12, 13])), 12),
            (payload(id::DYN_ARRAY, words(&[11u32, 12, 13])), 11),
            (payload(id::AREA, words(&[11u32, 12])), 8),
        ] {
            for hurt in [Hurt::ReadOnly, Hurt::NoAccess, Hurt::Unmapped] {
                let mut list = [integer.clone(), one.clone().size(300), last.clone()];
                let Value::At(bytes) = &one.value else { continue };
                list[1].value = Value::Across(bytes.clone(), there);
                let mut claims = case(
                    format!("{:#x} with {there} of 300 bytes, then {hurt:?}", one.id),
                    command,
                    &list,
                );
                claims.damage = Damage::Payload(1, hurt);
                cases.push(claims);
            }
        }
        for pointer in [0, 20, 0xffff_8000_0000_0000, u64::MAX - 10] {
            let mut nowhere = case(
                format!("the list at {pointer:#x}"),
                command,
                std::slice::from_ref(&integer),
            );
            nowhere.damage = Damage::Pointer(pointer);
            cases.push(nowhere);
        }
    }
    let lines = compare("bad memory", &cases)?;
    // A string that cannot be written back is set all the same, and what follows it is not.
    told(&lines, "S 0x98f905 ReadOnly: Err(EFAULT)")?;
    told(&lines, "G 0x98f909 ReadOnly: Err(EFAULT)")?;
    told(&lines, "G 0x98f905 with 4 of 300 bytes, then Unmapped: Ok(0)")
}

fn garbage() -> anyhow::Result<()> {
    let mut cases = Vec::new();
    for command in ALL {
        for control in [
            id::INTEGER,
            id::BOOLEAN,
            id::INTEGER64,
            id::UNKNOWN,
            id::USER_CLASS,
            id::TEST_PATTERN,
            0x8000_0000 | id::INTEGER,
            0xc000_0000 | id::STRING,
        ] {
            for raw in [1, 0x1000, 0x7fff_ffff_f001, 0xffff_8000_0000_0001] {
                for size in [0, 4, 4096, u32::MAX] {
                    let list = [value(control, raw).size(size)];
                    cases.push(case(format!("{control:#x} {raw:#x} of {size}"), command, &list));
                }
            }
        }
    }
    // Not a picture that other tests would miss.
    cases.retain(|case| case.given[0].id != id::TEST_PATTERN || case.command != S);
    let lines = compare("garbage pointers", &cases)?;
    told(&lines, "S 0x98f902 0x1 of 4294967295: Ok(0)")
}

fn which() -> anyhow::Result<()> {
    let mut cases = Vec::new();
    let list = [
        other()[0].clone(),
        value(id::INTEGER, 9),
        value(id::TEST_PATTERN, 0),
    ];
    for command in ALL {
        for class in [
            0,
            USER,
            VIVID,
            0x00aa_0000,
            DEFAULT,
            REQUEST,
            0x0f02_0000,
            1,
            u32::MAX,
        ] {
            for count in [1, 2, 3] {
                for request_fd in [0, -1, 9999, 3] {
                    let mut one = case(
                        format!("{class:#x}, {count}, request {request_fd}"),
                        command,
                        &list[..count],
                    );
                    one.header.which = class;
                    one.header.request_fd = request_fd;
                    cases.push(one);
                }
            }
        }
    }
    let lines = compare("classes", &cases)?;
    told(&lines, "G 0xf000000, 2, request 0: Ok(0)")?;
    told(&lines, "G 0x980000, 3, request 0: Err(EINVAL)")?;
    told(&lines, "S 0xf010000, 2, request -1: Err(EINVAL)")
}

/// The pixel array has a byte for each 16 times 16 pixels.
fn growing() -> anyhow::Result<()> {
    daemon::shared()?;
    let path = real(VMALLOC).to_string();
    let check = || -> anyhow::Result<usize> {
        let mut longest = 0;
        for size in [
            "width=320,height=180",
            "width=3840,height=2160",
            "width=640,height=360",
        ] {
            run("v4l2-ctl", &["-d", &path, "-v", size], 4 * AT_ONCE)?;
            let lines = same(VMALLOC, grown)?;
            let got = lines.last().and_then(|line| line.parse::<usize>().ok());
            longest = longest.max(got.context("no length")?);
        }
        Ok(longest)
    };
    let outcome = check();
    setup::devices()?;
    let longest = outcome?;
    if longest > 0 {
        figure(format!("the largest payload that vivid has: {longest} bytes"));
    }
    Ok(())
}

fn grown(node: Node) -> anyhow::Result<Vec<String>> {
    let video = node.open()?;
    let mut lines = vec![plain(&video, G, 0, &[value(id::PIXEL_ARRAY, 0)])?];
    // `size` as G has just told.
    let size = lines[0]
        .split(" size ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|word| word.parse::<usize>().ok());
    let size = size.context("no size")?;
    for step in [1, 3] {
        let bytes: Vec<u8> = (0..size.max(1))
            .map(|at| (at * step % 251).to_le_bytes()[0])
            .collect();
        lines.push(plain(&video, S, 0, &[payload(id::PIXEL_ARRAY, bytes)])?);
        lines.push(plain(
            &video,
            G,
            0,
            &[payload(id::PIXEL_ARRAY, vec![FILL; size.max(1)])],
        )?);
        lines.push(plain(
            &video,
            G,
            0,
            &[payload(id::PIXEL_ARRAY, vec![FILL; size + 100])],
        )?);
    }
    lines.push(size.to_string());
    Ok(lines)
}

fn listed() -> anyhow::Result<()> {
    daemon::shared()?;
    let outcome = same(VMALLOC, |node| {
        reset()?;
        let path = node.to_string();
        let mut lines = Vec::new();
        for options in [
            &["--list-ctrls-menus"][..],
            &["--all"],
            &["-C", "string,u8_2x3x4x5_array,area,bitmask,integer_64_bits"],
            &["-c", "string=hey", "-C", "string"],
            &["-c", "string=much too long", "-C", "string"],
            &["-c", "u8_2x3x4x5_array=17", "-C", "u8_2x3x4x5_array"],
        ] {
            let mut arguments = vec!["-d", path.as_str()];
            arguments.extend(options);
            let (status, output) = crate::client::run_any("v4l2-ctl", &arguments, 4 * AT_ONCE)?;
            lines.push(format!("{options:?}: {status}"));
            lines.extend(comparable(&output));
        }
        Ok(lines)
    });
    reset()?;
    let lines = outcome?;
    ensure!(
        lines.iter().any(|line| line.contains("value='hey'")
            || line.contains("string: 'hey'")
            || line.contains("hey")),
        "{lines:#?}"
    );
    Ok(())
}

/// Without what changes by itself, and without what is said of the media controller: `MEDIA_IOC_*` finds the entity of
/// a node by its device number, and ours has another.
fn comparable(output: &str) -> Vec<String> {
    let mut media = false;
    let is_media = ["Media Driver Info:", "Interface Info:", "Entity Info:"];
    let mut keep = |line: &&str| {
        if !line.starts_with('\t') {
            media = is_media.contains(line);
        }
        let volatile =
            line.trim_start().starts_with("gain 0x") || line.starts_with("FAIL: could not find device");
        !media && !volatile
    };
    output
        .lines()
        .filter(|line| keep(line))
        .map(str::to_owned)
        .collect()
}
