//! The way of payloads, with a client and a driver made up here.

use std::cell::RefCell;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::controls::{V4l2ExtControl, V4l2QueryExtCtrl, control_flag};
use zerocopy::FromZeros;

use super::{ClientMemory, carry};
use crate::sys::{self, HostPayload, MemoryFault};

/// A client with one piece of memory at `START`, of which the first `writable` bytes can be written.
struct Fake {
    bytes: RefCell<Vec<u8>>,
    writable: usize,
    writes: RefCell<Vec<(u64, usize)>>,
}

const START: u64 = 0x7000_1000;

impl Fake {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            writable: bytes.len(),
            bytes: RefCell::new(bytes),
            writes: RefCell::default(),
        }
    }

    fn range(&self, client_addr: u64, len: usize) -> Result<std::ops::Range<usize>, MemoryFault> {
        let at = client_addr.checked_sub(START).ok_or(MemoryFault::Fault)?;
        let at = usize::try_from(at).map_err(|_| MemoryFault::Fault)?;
        let end = at.checked_add(len).ok_or(MemoryFault::Fault)?;
        if end > self.bytes.borrow().len() {
            return Err(MemoryFault::Fault);
        }
        Ok(at..end)
    }
}

impl ClientMemory for Fake {
    fn read(&self, client_addr: u64, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        let range = self.range(client_addr, bytes.len())?;
        bytes.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn write(&self, client_addr: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
        let range = self.range(client_addr, bytes.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(bytes);
        self.writes.borrow_mut().push((client_addr, bytes.len()));
        Ok(())
    }

    fn check_writable(&self, client_addr: u64, len: u32) -> Result<(), MemoryFault> {
        let range = self.range(client_addr, len as usize)?;
        if range.end > self.writable {
            return Err(MemoryFault::Fault);
        }
        Ok(())
    }
}

fn control(size: u32, value: u64) -> V4l2ExtControl {
    V4l2ExtControl {
        id: 1,
        size,
        value: value.to_ne_bytes(),
        ..V4l2ExtControl::default()
    }
}

/// A device whose every control has a payload of `elems` times `elem_size` bytes.
fn holding(elem_size: u32, elems: u32) -> impl Fn(u32) -> Option<V4l2QueryExtCtrl> {
    move |_| {
        let mut query = V4l2QueryExtCtrl::new_zeroed();
        query.flags = control_flag::HAS_PAYLOAD;
        query.elem_size = elem_size;
        query.elems = elems;
        Some(query)
    }
}

const NATIVE: ClientAbi = ClientAbi::Native;

/// One control on its way; `driver` gets it with its payload.
fn one(
    control: &mut V4l2ExtControl,
    memory: &Fake,
    query: impl Fn(u32) -> Option<V4l2QueryExtCtrl>,
    driver: impl FnOnce(&mut V4l2ExtControl, &mut HostPayload<'_>) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    carry(
        NATIVE,
        std::slice::from_mut(control),
        Some(memory),
        query,
        |_| Ok(()),
        |controls, payloads| driver(&mut controls[0], &mut payloads[0]),
    )
}

fn bytes<'a>(payload: &'a mut HostPayload<'_>) -> &'a mut [u8] {
    match payload {
        HostPayload::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

fn pattern(len: usize, step: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at * step % 251).expect("less than 256"))
        .collect()
}

#[test]
fn a_payload_beyond_128_kib_goes_both_ways_whole() {
    let (given, taken) = (pattern(300_000, 7), pattern(300_000, 3));
    let memory = Fake::new(given.clone());
    let mut control = control(300_000, START);
    let outcome = one(&mut control, &memory, holding(4, 75_000), |control, payload| {
        assert_eq!(control.size, 300_000);
        let bytes = bytes(payload);
        assert!(*bytes == given);
        bytes.copy_from_slice(&taken);
        Ok(0)
    });
    assert_eq!(outcome, Ok(0));
    assert!(*memory.bytes.borrow() == taken);
    assert_eq!((control.size, control.value), (300_000, START.to_ne_bytes()));
}

#[test]
fn only_what_the_driver_wrote_is_written() {
    let memory = Fake::new(b"old text, and more".to_vec());
    let mut text = control(18, START);
    one(&mut text, &memory, holding(18, 1), |_, payload| {
        bytes(payload)[..4].copy_from_slice(b"odd\0");
        Ok(0)
    })
    .expect("all is well");
    assert_eq!(&*memory.bytes.borrow(), b"odd\0text, and more");
    assert_eq!(*memory.writes.borrow(), [(START + 1, 3)]);

    let mut same = control(18, START);
    one(&mut same, &memory, holding(18, 1), |_, _| Ok(0)).expect("all is well");
    assert_eq!(memory.writes.borrow().len(), 1);
}

#[test]
fn what_the_driver_wrote_before_it_failed_is_written_too() {
    let memory = Fake::new(vec![0; 8]);
    let mut control = control(8, START);
    let outcome = one(&mut control, &memory, holding(8, 1), |_, payload| {
        bytes(payload).fill(7);
        Err(Errno::EIO)
    });
    assert_eq!(outcome, Err(Errno::EIO));
    assert_eq!(*memory.bytes.borrow(), [7; 8]);
}

#[test]
fn memory_of_ours_is_as_accessible_as_the_clients() {
    let page = sys::page_size().expect("pages");
    let mut memory = Fake::new(pattern(3 * page, 1));
    memory.writable = 2 * page;
    let seen = |at: usize| {
        let mut told = String::new();
        one(
            &mut control(10, START + u64::try_from(at).expect("small")),
            &memory,
            holding(10, 1),
            |_, payload| {
                told = match payload {
                    HostPayload::None => "none".to_owned(),
                    HostPayload::Bytes(bytes) => format!("{} bytes", bytes.len()),
                    HostPayload::Mirror(mirror) => format!("{} mirrored", mirror.size()),
                    HostPayload::Unreachable => "unreachable".to_owned(),
                };
                Ok(0)
            },
        )
        .expect("the driver's word");
        told
    };
    assert_eq!(seen(2 * page - 10), "10 bytes");
    assert_eq!(seen(2 * page - 9), "10 mirrored");
    assert_eq!(seen(2 * page), "10 mirrored");
    assert_eq!(seen(3 * page - 2), "10 mirrored");
    assert_eq!(seen(3 * page), "unreachable");
    let mut nowhere = control(10, u64::MAX - 3);
    one(&mut nowhere, &memory, holding(10, 1), |_, payload| {
        assert!(matches!(payload, HostPayload::Unreachable));
        Ok(0)
    })
    .expect("the driver's word");
}

#[test]
fn a_payload_is_looked_at_page_by_page() {
    let all = |len, first| super::pieces(len, first, 4).collect::<Vec<_>>();
    assert_eq!(all(9, 1), [0..1, 1..5, 5..9]);
    assert_eq!(all(3, 4), all(3, 5));
    assert_eq!(all(3, 4).len(), 1);
    assert!(all(0, 4).is_empty());
}

#[test]
fn a_value_is_no_pointer_whatever_its_size_says() {
    let memory = Fake::new(vec![1; 8]);
    for query in [None, Some(V4l2QueryExtCtrl::new_zeroed())] {
        let mut control = control(8, START);
        one(
            &mut control,
            &memory,
            |_| query,
            |control, payload| {
                assert!(matches!(payload, HostPayload::None));
                assert_eq!((control.size, control.value), (0, START.to_ne_bytes()));
                control.value = [9; 8];
                Ok(0)
            },
        )
        .expect("the driver's word");
        assert_eq!((control.size, control.value), (8, [9; 8]));
    }
    assert_eq!(*memory.bytes.borrow(), [1; 8]);
}

#[test]
fn of_size_0_nobody_is_asked_and_the_size_that_the_driver_wants_comes_back() {
    let memory = Fake::new(vec![1; 8]);
    let mut control = control(0, START);
    let outcome = one(
        &mut control,
        &memory,
        |_| panic!("nothing to ask"),
        |control, _| {
            control.size = 240;
            Err(Errno::from_raw(28))
        },
    );
    assert_eq!(outcome, Err(Errno::from_raw(28)));
    assert_eq!((control.size, control.value), (240, START.to_ne_bytes()));
}

#[test]
fn a_size_larger_than_any_is_the_clients_again_if_the_driver_did_not_change_it() {
    let memory = Fake::new(vec![1; 8]);
    let ask = |size_after: Option<u32>| {
        let mut control = control(u32::MAX, START);
        one(&mut control, &memory, holding(4, 2), |control, payload| {
            assert_eq!((control.size, bytes(payload).len()), (12, 12));
            control.size = size_after.unwrap_or(control.size);
            Ok(0)
        })
        .expect("the driver's word");
        control.size
    };
    assert_eq!(ask(None), u32::MAX);
    assert_eq!(ask(Some(8)), 8);
}

#[test]
fn a_32_bit_pointer_is_the_first_half_and_the_other_half_stays() {
    let memory = Fake::new(vec![1; 8]);
    let low = u32::try_from(START).expect("a 32-bit address");
    let mut value = [0xee; 8];
    value[..4].copy_from_slice(&low.to_ne_bytes());
    let mut control = V4l2ExtControl {
        value,
        ..control(8, 0)
    };
    carry(
        ClientAbi::I386,
        std::slice::from_mut(&mut control),
        Some(&memory),
        holding(8, 1),
        |_| Ok(()),
        |_, payloads| {
            bytes(&mut payloads[0]).fill(2);
            Ok(0)
        },
    )
    .expect("the driver's word");
    assert_eq!(control.value, value);
    assert_eq!(*memory.bytes.borrow(), [2; 8]);
}

#[test]
fn a_list_beyond_the_budget_never_reaches_the_driver() {
    let memory = Fake::new(vec![1; 8]);
    let mut controls = [control(u32::MAX, START), control(1 << 20, START)];
    let outcome = carry(
        NATIVE,
        &mut controls,
        Some(&memory),
        holding(1 << 16, 1 << 16),
        |bytes| {
            assert_eq!(bytes, 2 * (u64::from(u32::MAX) + (1 << 20)));
            Err(Errno::ENOMEM)
        },
        |_, _| panic!("not to be called"),
    );
    assert_eq!(outcome, Err(Errno::ENOMEM));
    assert_eq!((controls[0].size, controls[1].size), (u32::MAX, 1 << 20));
}

#[test]
fn memory_that_vanished_meanwhile_is_a_fault() {
    let memory = Fake::new(vec![1; 8]);
    let mut control = control(8, START);
    let outcome = one(&mut control, &memory, holding(8, 1), |_, payload| {
        bytes(payload).fill(2);
        memory.bytes.borrow_mut().clear();
        Ok(0)
    });
    assert_eq!(outcome, Err(Errno::EFAULT));
}

#[test]
fn a_list_of_payloads_out_of_reach_ends_before_our_files_do() {
    // Memory that can be read and not written.
    let mut memory = Fake::new(vec![7; 100]);
    memory.writable = 0;
    let count = super::MOST_MIRRORS + 4;
    let mut kinds = Vec::new();
    let outcome = carry(
        NATIVE,
        &mut vec![control(50, START); count],
        Some(&memory),
        holding(10, 5),
        |_| Ok(()),
        |_, payloads| {
            let mirror = |payload: &HostPayload<'_>| matches!(payload, HostPayload::Mirror(_));
            kinds.extend(payloads.iter().map(mirror));
            Err(Errno::EFAULT)
        },
    );
    assert_eq!(outcome, Err(Errno::EFAULT));
    assert_eq!(kinds, [vec![true; super::MOST_MIRRORS], vec![false; 4]].concat());
}
