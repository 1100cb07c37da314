//! What is decided without a client.

use super::{Adoption, Lent, MOST_DECLINED, MOST_PENDING, PAGE, Wish, is_gone, obstacle};
use crate::sys::Vma;
use std::sync::Arc;
use std::time::Instant;
use vidcompat_proto::queue::{Claim, ClientKey};
use vidcompat_proto::shim::Outcome;

const BASE: u64 = 0x7f00_0000_0000;

fn claim(client_addr: u64, length: u32) -> Claim {
    Claim {
        client: ClientKey(1),
        client_addr,
        length,
    }
}

fn plain(start: u64, pages: u64) -> Vma {
    Vma {
        start,
        end: start + pages * PAGE,
        readable: true,
        writable: true,
        shared: false,
        offset: 0,
        device: (0, 0),
        inode: 0,
        name: Vec::new(),
    }
}

fn lent(at: u64, pages: u64) -> Lent {
    Lent {
        client: ClientKey(1),
        pid: 10,
        client_addr: at,
        length: pages * PAGE,
        buffers: Arc::default(),
        plane: 0,
        offered: None,
        asked_back: false,
    }
}

fn wish(claim: Claim) -> Wish {
    Wish::Adopt {
        index: 0,
        plane: 0,
        claim,
    }
}

#[test]
fn what_is_adopted_is_whole_pages_of_one_ordinary_mapping() {
    let vma = plain(BASE, 4);
    let why = |vma: &Vma, at: u64, length: u32| obstacle(vma, &claim(BASE + at, length), 4 * PAGE);
    assert_eq!(why(&vma, 0, 4 * 4096), None);
    assert_eq!(
        why(&vma, PAGE, 2 * 4096 + 1),
        None,
        "the rest of the last page, too"
    );
    for (at, length) in [(PAGE, 3 * 4096 + 1), (3 * PAGE, 4097), (0, u32::MAX)] {
        assert_eq!(
            why(&vma, at, length),
            Some("it is several mappings"),
            "{at} {length}"
        );
    }
    assert_eq!(why(&vma, 1, 4096), Some("it does not begin with a page"));
    let longer = plain(BASE, 100);
    let beyond = Some("it is longer than the device's buffer");
    assert_eq!(why(&longer, 0, 4 * 4096 + 1), beyond);
    let last = Vma {
        end: u64::MAX - PAGE + 1,
        ..plain(u64::MAX - 2 * PAGE + 1, 0)
    };
    let wraps = claim(last.start, 2 * 4096);
    assert_eq!(obstacle(&last, &wraps, u64::MAX), Some("it is several mappings"));
    let others = [
        Vma {
            shared: true,
            ..plain(BASE, 4)
        },
        Vma {
            inode: 7,
            ..plain(BASE, 4)
        },
        Vma {
            readable: false,
            ..plain(BASE, 4)
        },
        Vma {
            writable: false,
            ..plain(BASE, 4)
        },
        Vma {
            name: b"[heap]".to_vec(),
            ..plain(BASE, 4)
        },
        Vma {
            name: b"[stack]".to_vec(),
            ..plain(BASE, 4)
        },
        Vma {
            inode: 7,
            name: b"/anon_hugepage (deleted)".to_vec(),
            ..plain(BASE, 4)
        },
    ];
    for other in others {
        assert!(why(&other, 0, 4096).is_some(), "{other:?}");
    }
}

#[test]
fn who_never_comes_for_a_move_leaves_few() {
    let mut adoption = Adoption::default();
    for length in 1..5000 {
        let asked = claim(BASE, length);
        assert!(!adoption.is_pending(&asked));
        adoption.ask_for(10, [wish(asked)]);
    }
    assert_eq!(adoption.pending.len(), MOST_PENDING);
    assert!(adoption.is_pending(&claim(BASE, 4999)), "the last ones stay");
    assert!(!adoption.is_pending(&claim(BASE, 4999)), "asked once");
}

#[test]
fn what_was_declined_is_remembered_by_its_client_and_has_an_end() {
    let mut adoption = Adoption::default();
    adoption.decline(&claim(BASE, 1), "why");
    assert!(adoption.was_declined(&claim(BASE, 2)));
    let client = ClientKey(2);
    assert!(!adoption.was_declined(&Claim {
        client,
        ..claim(BASE, 1)
    }));
    for page in 1..=MOST_DECLINED as u64 {
        adoption.decline(&claim(BASE + page * PAGE, 1), "why");
    }
    assert!(!adoption.was_declined(&claim(BASE, 1)));
    assert_eq!(adoption.declined.len(), MOST_DECLINED);
    assert_eq!(adoption.told().1["why"], MOST_DECLINED as u64 + 1);
}

#[test]
fn plain_memory_ends_what_is_lent_there_and_nothing_beside_it() {
    let mut adoption = Adoption::default();
    adoption
        .lent
        .extend([0, 4, 8].map(|page| lent(BASE + page * PAGE, 4)));
    adoption.lent[2].offered = Some(Instant::now());
    let has = |adoption: &Adoption, page: u64| adoption.has(&claim(BASE + page * PAGE, 1));
    assert!(
        has(&adoption, 0) && has(&adoption, 4) && !has(&adoption, 8),
        "offered is not lent"
    );
    let stranger = Claim {
        client: ClientKey(2),
        ..claim(BASE, 12 * 4096)
    };
    adoption.is_plain_again(&stranger);
    // One byte in the last page of the second.
    adoption.is_plain_again(&claim(BASE + 8 * PAGE - 1, 1));
    assert!(has(&adoption, 0) && !has(&adoption, 4) && adoption.lent.len() == 2);
    adoption.is_plain_again(&claim(BASE + 4 * PAGE, 4 * 4096));
    assert_eq!(adoption.lent.len(), 2);
}

#[test]
fn nothing_is_lent_to_who_is_gone() {
    let mut child = std::process::Command::new("true").spawn().expect("a program");
    let gone = i32::try_from(child.id()).expect("a process");
    child.wait().expect("ours");
    let mut adoption = Adoption::default();
    for (page, pid) in [
        (0, gone),
        (4, i32::try_from(std::process::id()).expect("a process")),
    ] {
        adoption.lent.push(Lent {
            pid,
            ..lent(BASE + page * PAGE, 4)
        });
    }
    adoption.end_of(is_gone);
    assert!(matches!(&adoption.lent[..], [lent] if lent.pid != gone));
}

#[test]
fn a_report_that_comes_twice_is_one() {
    let mut adoption = Adoption::default();
    adoption.lent.push(Lent {
        offered: Some(Instant::now()),
        ..lent(BASE, 4)
    });
    let done = |adoption: &mut Adoption| adoption.moved(10, BASE, 4 * PAGE, Outcome::Done);
    done(&mut adoption);
    done(&mut adoption);
    assert!(
        adoption.has(&claim(BASE, 4096)),
        "it stands in the client's memory"
    );
    assert_eq!(adoption.adopted, 1);
    adoption.lent[0].asked_back = true;
    done(&mut adoption);
    assert!(adoption.lent.is_empty());
    done(&mut adoption);
}
